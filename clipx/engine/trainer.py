"""The training loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from clipx.checkpoints import TrainState
from clipx.data.loader import load
from clipx.embed import Encoder
from clipx.engine.config import TrainConfig, due
from clipx.engine.evaluate import evaluate_in_training, flat
from clipx.engine.progress import Reporter
from clipx.engine.run import Logs, append_bad
from clipx.engine.session import Session
from clipx.engine.throughput import Meter
from clipx.types import Setting, UserError


def train(config: TrainConfig) -> TrainState:
    """Train until `duration`, from the newest checkpoint of the run folder if it has one. Returns
    the final state."""
    session = Session(config)
    runtime, plan = session.runtime, session.plan
    report = Reporter(total_steps=plan.total, first_step=session.state.step, show=runtime.is_main)
    for message in [*session.messages, session.describe()]:
        report.say(message)
    folder = session.folder
    logs = Logs(folder.path, session.state.step, tensorboard=config.tensorboard) if folder else None
    meter = Meter()
    bad = session.corpus.faults if runtime.is_main and session.state.step == 0 else []
    try:
        evaluate_if_due(session, logs, report)
        for batch in meter.timed(load(session.source, session.state.step, plan.total)):
            metrics = session.advance(batch)
            step = session.state.step
            bad += batch.bad
            meter.add(config.global_batch_size)
            report.step(step)
            if due(step, plan.log_every, plan.total):
                record = log_record(session, metrics, meter)
                everyones_bad = [b for rank in runtime.gather(bad) for b in rank]
                bad = []
                if logs is not None:
                    logs.log(record, everyones_bad)
                report.log(record)
            began = time.perf_counter()
            if due(step, plan.checkpoint_every, plan.total) and (fault := session.save()):
                if step == plan.total:  # no later save will make up for it
                    raise UserError(f"{fault}; make room and start the same command again")
                report.say(f"{fault}; the last good one stays, training goes on")
            evaluate_if_due(session, logs, report)  # after the checkpoint: an evaluation may fail
            meter.pause(time.perf_counter() - began)
    except UserError:
        append_bad(Path(config.run_dir), session.state.step, bad)  # there is no later log line
        raise
    finally:
        report.close()
        if logs is not None:
            logs.close()
    runtime.close()
    return session.state


def log_record(session: Session, metrics: dict[str, Tensor], meter: Meter) -> dict[str, Any]:
    """One line of metrics.jsonl. All ranks take part."""
    state = session.state
    return {
        "step": state.step,
        "samples_seen": state.position,
        "epoch": round(state.position / session.corpus.num_samples, 4),
        **{f"train/{n}": value.item() for n, value in metrics.items() if n != "clamped"},
        **session.health(),
        **meter.read(),
        "fingerprint": f"{session.runtime.sum_int(state.fingerprint):016x}",
    }


def evaluate_if_due(session: Session, logs: Logs | None, report: Reporter) -> None:
    """All ranks evaluate, each its share. What a killed run had evaluated at this step is not done
    again."""
    step, plan, runtime = session.state.step, session.plan, session.runtime
    names = [n for n, every in plan.evaluate_every.items() if due(step, every, plan.total)]
    if not names or step == 0 or runtime.from_main(logs is not None and step in logs.evaluated):
        return
    with session.parts.evaluated(session.model_json) as model:
        device, dtype = runtime.device, session.precision.dtype
        encoder = Encoder(model, session.model_json, device=device, dtype=dtype)
        chosen = {name: session.config.evaluators[name] for name in names}
        setting = Setting(ranks=runtime, device=device)
        results = evaluate_in_training(encoder, chosen, setting, report.say)
    if logs is not None:
        record = {"step": step, "samples_seen": session.state.position}
        intervals = {
            f"{n}-{k}_interval": v for n, r in results.items() for k, v in r.intervals.items()
        }
        logs.results({**record, **flat(results), **intervals})
    shown = [f"{k} {v:.2%}" for k, v in flat(results).items() if k.endswith(("top1", "R@1"))]
    report.say(f"step {step}  " + "  ".join(shown))
    for name, result in results.items():
        for alarm in result.alarms:
            report.say(f"{name}: {alarm}")
