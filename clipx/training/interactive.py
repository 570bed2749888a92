"""`clipx.train`: a run that is started from Python, with a live table in a notebook."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx import embed
from clipx.config import build, merge, parse_override, read_layers, to_data
from clipx.embed import Encoder
from clipx.trackers.jsonl import read_lines
from clipx.training import trainer
from clipx.training.config import TrainConfig
from clipx.training.interruption import SIGNALS, Stop
from clipx.training.logging import Reporter
from clipx.training.notebook_table import NotebookTable, notebook_display
from clipx.types import Report, UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    """A run that has taken all of its steps.

    folder: its run_dir; step: how many were taken; samples_seen: pairs, over all epochs
    """

    folder: Path
    step: int
    samples_seen: int

    def load(self, **options: Any) -> Encoder:
        """The trained model. Raises UserError.

        options: as for `clipx.load`, such as device="auto"
        """
        return embed.load(self.folder, **options)

    @property
    def metrics(self) -> list[Record]:
        """The lines of metrics.jsonl, oldest first, such as {"step": 10, "train/loss": 2.1}: of
        all starts of the run. Raises OSError."""
        return read_lines(self.folder / "metrics.jsonl")

    @property
    def results(self) -> list[Record]:
        """The lines of results.jsonl, one for each evaluation, oldest first; rates are fractions.
        Raises OSError."""
        return read_lines(self.folder / "results.jsonl")


def train(
    config: str | Path | Mapping[str, Any] | TrainConfig,
    *overrides: str,
    on_log: Callable[[Record], None] | None = None,
) -> FinishedRun:
    """Train, or continue a run that has checkpoints in its run_dir: what `clipx train` does. In a
    notebook a live table shows the newest lines; elsewhere progress goes to stderr.

    config: a YAML file, its content as a mapping, or a TrainConfig
    overrides: as on the command line, such as "optim.lr=1e-3"
    on_log: called with each new line of metrics.jsonl, on the first rank; an exception ends the run

    Raises UserError for mistakes, and Stopped, after a checkpoint, if the kernel is interrupted or
    a signal or time limit ends the run; the same call continues it.
    """
    settings = _settings(config, overrides)
    display = notebook_display()

    def make_report(*, total_steps: int, first_step: int, show: bool) -> Report:
        report: Report
        if display is not None and show:
            report = NotebookTable(display, total_steps=total_steps, first_step=first_step)
        else:
            report = Reporter(total_steps=total_steps, first_step=first_step, show=show)
        return report if on_log is None or not show else _Observed(report, on_log)

    stop = Stop()
    with _signals_to(stop):
        state = trainer.train(settings, stop, make_report=make_report)
    return FinishedRun(Path(settings.run_dir), state.step, state.position)


class _Observed:
    """A Report that passes each log line on."""

    def __init__(self, report: Report, on_log: Callable[[Record], None]) -> None:
        self.say = report.say
        self.step = report.step
        self.close = report.close
        self._report = report
        self._on_log = on_log

    @property
    def seconds(self) -> float:
        return self._report.seconds

    def log(self, record: Record) -> None:
        self._report.log(record)
        self._on_log(dict(record))


def _settings(
    config: str | Path | Mapping[str, Any] | TrainConfig, overrides: tuple[str, ...]
) -> TrainConfig:
    """Raises UserError."""
    if isinstance(config, TrainConfig):
        data = to_data(config)
        name = "the TrainConfig"
    elif isinstance(config, Mapping):
        data = dict(config)
        name = "the mapping"
    elif isinstance(config, str | Path):
        data = read_layers(Path(config))
        name = str(config)
    else:
        raise UserError(
            f"config must be a YAML file, a mapping or a TrainConfig, not {type(config).__name__}"
        )
    for override in overrides:
        data = merge(data, parse_override(override))
    return build(TrainConfig, data, where=name)


@contextmanager
def _signals_to(stop: Stop) -> Iterator[None]:
    """Signals end the run with a checkpoint. Afterwards they do what they did before, because the
    process continues, unlike that of the command line."""
    # Python delivers signals to the main thread, and lets no other change handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with stop.listening():
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
