"""The training loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from clipx.checkpoints.format import TrainState
from clipx.data.loader import load
from clipx.embed import Encoder
from clipx.training.config import TrainConfig, due
from clipx.training.console import Reporter
from clipx.training.errors import judged
from clipx.training.evaluation import evaluate_in_training, flat
from clipx.training.interruption import Stop
from clipx.training.log_files import Logs, append_bad
from clipx.training.run_folder import unwritable
from clipx.training.run_status import State
from clipx.training.session import Session
from clipx.training.throughput import Meter
from clipx.types import Result, Setting, Stopped, StopRequested, UserError


def train(config: TrainConfig, stop: Stop | None = None) -> TrainState:
    """Train until `duration`, from the newest checkpoint of the run folder if it has one. Returns
    the final state. Raises Stopped, after a checkpoint, where it ends before.

    stop: hears of signals; None: only a time limit ends the run early
    """
    stop = stop or Stop()
    session = Session(config, stop)
    runtime, plan = session.runtime, session.plan
    report = Reporter(total_steps=plan.total, first_step=session.state.step, show=runtime.is_main)
    stop.on_first = lambda name: report.say(f"{name}: a checkpoint after this step, then the end")
    for message in [*session.messages, session.describe()]:
        report.say(message)
    logs: Logs | None = None
    ended: tuple[State, str | None] = ("failed", None)
    try:
        logs = open_logs(session)
        loop(session, logs, report, stop)
        ended = ("finished", None)
    except Stopped as early:
        ended = ("stopped", str(early))
        raise
    except BaseException as error:  # noqa: BLE001  raised below
        final = judged(error, config, runtime, session.monitor)
        ended = ("failed", f"{type(final).__name__}: {final}")
        raise final from (None if final is error else error)
    finally:
        report.close()
        try:
            if logs is not None:
                logs.close()
        finally:
            session.close(*ended)
        if ended[0] != "failed":  # else peers may be gone, and nobody is to wait for them
            runtime.close()
    return session.state


def open_logs(session: Session) -> Logs | None:
    """The log files, on rank 0. All ranks take part. Raises UserError on all of them where the
    files cannot be read or written."""
    folder, step = session.folder, session.state.step
    logs, fault = None, None
    if folder is not None:
        try:
            logs = Logs(folder.path, step, tensorboard=session.config.tensorboard)
        except OSError as error:
            fault = str(unwritable(folder.path, error))
    session.runtime.agree(fault)
    return logs


def loop(session: Session, logs: Logs | None, report: Reporter, stop: Stop) -> None:
    """The steps that are left, with what is due between them. Raises Stopped."""
    config, plan, meter = session.config, session.plan, Meter()
    bad = session.corpus.faults if logs is not None and session.state.step == 0 else []
    try:
        evaluate_if_due(session, logs, report, stop)
        for batch in meter.timed(load(session.source, session.state.step, plan.total)):
            metrics = session.advance(batch, stop=stop.reason is not None)
            step = session.state.step
            bad += batch.bad
            meter.add(config.global_batch_size)
            report.step(step)
            if due(step, plan.log_every, plan.total):
                record = log_record(session, metrics, meter)
                everyones_bad = [b for rank in session.runtime.gather(bad) for b in rank]
                bad = []
                if logs is not None:
                    logs.log(record, everyones_bad)
                    if logs.fault:
                        report.say(f"{logs.fault}; training goes on")
                session.tell(record)
                report.log(record)
            session.monitor.at(step, "elsewhere")
            began = time.perf_counter()
            save_if_due(session, report)
            if session.asked.stop and (step < plan.total or evaluations_due(session)):
                raise stopped(session, why(session, stop))
            evaluate_if_due(session, logs, report, stop)  # after the checkpoint: it may fail
            meter.pause(time.perf_counter() - began)
            session.monitor.at(step + 1, "data")
    except UserError:
        append_bad(Path(config.run_dir), session.state.step, bad)  # there is no later log line
        raise


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


def save_if_due(session: Session, report: Reporter) -> None:
    """An evaluation has a checkpoint before it, safe on the disk, and so has the end, where no
    later save would make up for one that failed. Raises UserError where the last one did."""
    step, plan, asked = session.state.step, session.plan, session.asked
    if fault := session.saver.fault():
        report.say(f"{fault}; the last good one stays, training goes on")
    last = step == plan.total or asked.stop
    evaluates = bool(evaluations_due(session))
    is_due = last or evaluates or asked.save or due(step, plan.checkpoint_every, plan.total)
    fault = session.save(wait=last or evaluates) if is_due else None
    if fault and last:
        raise UserError(f"{fault}; make room and start the same command again")
    if fault:
        report.say(f"{fault}; the last good one stays, training goes on")
    for notice in session.saver.take_notices():
        report.say(notice)


def evaluations_due(session: Session) -> list[str]:
    step, plan = session.state.step, session.plan
    return [n for n, every in plan.evaluate_every.items() if step and due(step, every, plan.total)]


def evaluate_if_due(session: Session, logs: Logs | None, report: Reporter, stop: Stop) -> None:
    """All ranks evaluate, each its share. What a killed run had evaluated at this step is not done
    again. Raises Stopped where any rank was asked to stop in between."""
    step, names, runtime = session.state.step, evaluations_due(session), session.runtime
    if not names or runtime.from_main(logs is not None and step in logs.evaluated):
        return
    chosen = {name: session.config.evaluators[name] for name in names}
    with session.parts.evaluated(session.model_json) as model:
        device, dtype = runtime.device, session.precision.dtype
        encoder = Encoder(model, session.model_json, device=device, dtype=dtype)
        setting = Setting(ranks=runtime, device=device, stop_reason=lambda: stop.reason)
        try:
            results = evaluate_in_training(encoder, chosen, setting, report.say)
        except StopRequested as request:
            raise stopped(session, str(request)) from None
    tell(results, session, logs, report)


def tell(results: dict[str, Result], session: Session, logs: Logs | None, report: Reporter) -> None:
    values = flat(results)
    if logs is not None:
        record = {"step": session.state.step, "samples_seen": session.state.position}
        intervals = {
            f"{n}-{k}_interval": v for n, r in results.items() for k, v in r.intervals.items()
        }
        logs.results({**record, **values, **intervals})
    shown = [f"{k} {v:.2%}" for k, v in values.items() if k.endswith(("top1", "R@1"))]
    report.say(f"step {session.state.step}  " + "  ".join(shown))
    for name, result in results.items():
        for alarm in result.alarms:
            report.say(f"{name}: {alarm}")


def stopped(session: Session, reason: str) -> Stopped:
    """All ranks take part."""
    if fault := session.saver.finish():
        raise UserError(f"{fault}; make room and start the same command again")
    step, total = session.state.step, session.plan.total
    return Stopped(f"stopped at step {step} of {total} by {reason}, with a checkpoint")


def why(session: Session, stop: Stop) -> str:
    """What made the first of the ranks that were asked stop. All ranks take part."""
    return next(reason for reason in session.runtime.gather(stop.reason) if reason)
