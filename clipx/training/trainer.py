"""The training loop."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from clipx.checkpoints.train_state import TrainState
from clipx.data.loader import load
from clipx.embed import Encoder
from clipx.training.build import describe
from clipx.training.closing import closing_text
from clipx.training.config import TrainConfig, due
from clipx.training.errors import explain
from clipx.training.evaluation import evaluate_in_training, flat, results_line
from clipx.training.interruption import Stop
from clipx.training.logging import LogFiles, Reporter, Throughput, append_bad_samples
from clipx.training.run_folder import unwritable
from clipx.training.run_status import State
from clipx.training.session import Session
from clipx.types import MakeReport, Report, Result, Setting, Stopped, StopRequested, UserError


def train(
    config: TrainConfig, stop: Stop | None = None, *, make_report: MakeReport = Reporter
) -> TrainState:
    """Train for `duration`, from the newest checkpoint of the run folder if it has one. Returns the
    final state. Raises Stopped, after a checkpoint, if the run ends earlier.

    stop: receives signals; None: only a time limit ends the run early
    make_report: what shows messages and progress
    """
    stop = stop or Stop()
    session = Session(config, stop)
    runtime = session.runtime
    plan = session.plan
    report = make_report(
        total_steps=plan.total, first_step=session.state.step, show=runtime.is_main
    )
    stop.on_first = lambda name: report.say(f"{name}: a checkpoint after this step, then the end")
    for message in [*session.messages, describe(config, plan, session.corpus, session.learner)]:
        report.say(message)
    first_step = session.state.step

    files: LogFiles | None = None
    state: State = "failed"
    reason: str | None = None
    try:
        # Lines after the resumed step are removed here, as these steps are taken again.
        files = open_log_files(session)
        run_steps(session, files, report, stop)
        state = "finished"
    except Stopped as early:
        state = "stopped"
        reason = str(early)
        raise
    except BaseException as error:  # noqa: BLE001  raised below
        # Also for KeyboardInterrupt and SystemExit: the status file must not keep "running".
        explained = explain(error, config, runtime, session.monitor)
        reason = f"{type(explained).__name__}: {explained}"
        raise explained from (None if explained is error else error)
    finally:
        report.close()
        try:
            if files is not None:
                files.close()
        finally:
            session.close(state, reason)
        if state != "failed":  # after a failure peers may be gone, and closing would wait for them
            runtime.close()
    if files is not None:  # on rank 0
        text = closing_text(config, first_step=first_step, total=plan.total, seconds=report.seconds)
        report.say(text)
    return session.state


def open_log_files(session: Session) -> LogFiles | None:
    """The log files, on rank 0. All ranks take part. Raises UserError on all of them if the files
    cannot be read or written."""

    def open_files() -> LogFiles:
        path = Path(session.config.run_dir)
        try:
            return LogFiles(path, session.state.step, tensorboard=session.config.tensorboard)
        except OSError as error:
            raise unwritable(path, error) from error

    return session.runtime.on_main(open_files)


def run_steps(session: Session, files: LogFiles | None, report: Report, stop: Stop) -> None:
    """Take the remaining steps, and log, save and evaluate when that is due. Raises Stopped."""
    config = session.config
    plan = session.plan
    throughput = Throughput()
    # Faults of whole shards are known since the corpus was opened; a resumed run has logged them.
    bad = session.corpus.faults if files is not None and session.state.step == 0 else []
    try:
        evaluate_if_due(session, files, report, stop)
        # Closed at once, also by an exception: data workers must not outlive the loop.
        with closing(load(session.source, session.state.step, plan.total)) as batches:
            for batch in throughput.timed(batches):
                metrics = session.advance(batch, stop=stop.reason is not None)
                step = session.state.step
                bad += batch.bad
                throughput.add(config.global_batch_size)
                report.step(step)
                if due(step, plan.log_every, plan.total):
                    log_step(session, metrics, throughput, bad, files, report)
                    bad = []
                # Saves and evaluations count neither as training time nor as a step that hangs.
                session.monitor.at(step, "elsewhere")
                pause_start = time.perf_counter()
                save_if_due(session, report)
                # A stop that comes with the last step needs no exception: the run is complete.
                if session.stop_requested and (step < plan.total or plan.evaluations_due(step)):
                    reason = session.runtime.first(stop.reason)
                    assert reason is not None, "a rank has requested the stop"
                    raise stopped(session, reason)
                # After the checkpoint, because an evaluation may fail.
                evaluate_if_due(session, files, report, stop)
                throughput.pause(time.perf_counter() - pause_start)
                session.monitor.at(step + 1, "data")
    except UserError:
        # There is no later log line that would write them.
        append_bad_samples(Path(config.run_dir), session.state.step, bad)
        raise


def log_step(
    session: Session,
    metrics: dict[str, Tensor],
    throughput: Throughput,
    bad: list[Any],
    files: LogFiles | None,
    report: Report,
) -> None:
    """Write one line of metrics.jsonl, and the bad samples of all ranks. All ranks take part."""
    runtime = session.runtime
    state = session.state
    record = {
        "step": state.step,
        "samples_seen": state.position,
        "epoch": round(state.position / session.corpus.num_samples, 4),
        **{f"train/{name}": value.item() for name, value in metrics.items()},
        **session.health(),
        **throughput.read(),
        "fingerprint": f"{runtime.sum_int(state.fingerprint):016x}",
    }
    all_bad = []
    for of_rank in runtime.gather(bad):
        all_bad += of_rank
    # Collectives are behind us: from here on rank 0 works alone.
    if files is not None:
        files.log(record, all_bad)
        if files.fault:
            report.say(f"{files.fault}; training goes on")
    if session.folder is not None:  # for `clipx runs`
        session.folder.status.update(
            **session.progress(),
            loss=record["train/loss"],
            samples_per_second=record["train/samples_per_second"],
        )
    report.log(record)


def save_if_due(session: Session, report: Report) -> None:
    """Save before the end and before an evaluation, and wait until the checkpoint is on the disk:
    no later save would make up for one that failed. Otherwise save during the next steps. Raises
    UserError if the last save fails."""
    step = session.state.step
    plan = session.plan
    if fault := session.saver.fault():
        report.say(f"{fault}; the last good one stays, training goes on")
    is_last = step == plan.total or session.stop_requested
    must_wait = is_last or bool(plan.evaluations_due(step))
    is_due = must_wait or session.save_requested or due(step, plan.checkpoint_every, plan.total)
    fault = session.save(wait=must_wait) if is_due else None
    if fault and is_last:
        raise UserError(f"{fault}; make room and start the same command again")
    if fault:
        report.say(f"{fault}; the last good one stays, training goes on")
    for notice in session.saver.take_notices():
        report.say(notice)


def evaluate_if_due(session: Session, files: LogFiles | None, report: Report, stop: Stop) -> None:
    """Evaluate on all ranks, each its share of the samples. Skips what a killed run has evaluated
    at this step before. Raises Stopped if any rank had to stop meanwhile."""
    step = session.state.step
    runtime = session.runtime
    names = session.plan.evaluations_due(step)
    if not names or runtime.from_main(files is not None and step in files.evaluated_steps):
        return
    evaluators = {name: session.evaluators[name] for name in names}
    report.step(step, f"evaluating {', '.join(names)}")
    # With the averages of the weights, if the run keeps them.
    with session.learner.evaluated(session.model_json) as model:
        device = runtime.device
        dtype = session.precision.dtype
        encoder = Encoder(model, session.model_json, device=device, dtype=dtype)
        setting = Setting(ranks=runtime, device=device, stop_reason=lambda: stop.reason)
        try:
            results = evaluate_in_training(encoder, evaluators, setting, report.say)
        except StopRequested as request:
            raise stopped(session, str(request)) from None
    report.step(step)
    log_results(results, session, files, report)


def log_results(
    results: dict[str, Result], session: Session, files: LogFiles | None, report: Report
) -> None:
    values = flat(results)
    if files is not None:
        record: dict[str, Any] = {
            "step": session.state.step,
            "samples_seen": session.state.position,
            **values,
        }
        for name, result in results.items():
            for metric, interval in result.intervals.items():
                record[f"{name}-{metric}_interval"] = interval
        files.log_results(record)
    report.say(results_line(session.state.step, values))
    for name, result in results.items():
        for alarm in result.alarms:
            report.say(f"{name}: {alarm}")


def stopped(session: Session, reason: str) -> Stopped:
    """The exception that ends a run early, after its checkpoint is on the disk. All ranks take
    part. Raises UserError if the checkpoint could not be written."""
    if fault := session.saver.finish():
        raise UserError(f"{fault}; make room and start the same command again")
    step = session.state.step
    # An evaluation before the first step has no checkpoint to be repeated from, and needs none.
    saved = ", with a checkpoint" if step else ""
    return Stopped(f"stopped at step {step} of {session.plan.total} by {reason}{saved}")
