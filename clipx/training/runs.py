"""`clipx runs`: lists runs, how far each is, and whether it is alive.

Reads only status.json and the names in checkpoints/ of each run folder, and does not import torch:
batch scripts call it after every attempt, and people over slow file systems.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clipx import strict_json
from clipx.checkpoints.manifest import list_checkpoints, step_of
from clipx.config import merge, parse_override, read_layers
from clipx.types import UserError

SILENT_SECONDS = 120
"""A process on another host is silent if it has written nothing for so long; it writes every 10 s
(clipx/training/run_status.py)."""
EXIT_FINISHED, EXIT_UNFINISHED = 0, 75  # the latter as of training that stopped early


@dataclass(frozen=True)
class Run:
    """state: as the run wrote it: running, stopped (may be continued), finished or failed. Or dead:
        it wrote running, but its process is gone; silent: running on another host, and without a
        change for SILENT_SECONDS; unknown: it has written no status
    loss: of the newest log line; checkpoint: step of the newest, valid or not
    updated: unix seconds
    """

    path: str
    state: str
    reason: str | None
    step: int
    total_steps: int | None
    samples_seen: int | None
    loss: float | None
    samples_per_second: float | None
    checkpoint: int | None
    updated: float | None
    host: str | None
    job: str | None
    attempt: int | None

    @property
    def progress(self) -> str:
        return f"{self.step}/{self.total_steps or '?'}"


def find(folders: Sequence[Path], *, depth: int = 3) -> list[Path]:
    """The run folders among `folders` and up to `depth` below them, sorted. Raises UserError if a
    folder does not exist."""
    runs: list[Path] = []

    def search(folder: Path, depth_left: int) -> None:
        names = {entry.name for entry in folder.iterdir()}
        # A run folder holds no others, so the search does not go below it.
        if "status.json" in names or {"config.yaml", "checkpoints"} <= names:
            runs.append(folder)
        elif depth_left:
            for name in names:
                if name[0] != "." and (folder / name).is_dir():
                    search(folder / name, depth_left - 1)

    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give run folders, or folders that hold some")
        search(folder, depth)
    return sorted(runs)


def read(path: Path) -> Run:
    """One run. Without a status, or with one that a full disk cut short, the checkpoints show how
    far it is."""
    checkpoints = list_checkpoints(path / "checkpoints")
    newest = step_of(checkpoints[-1]) if checkpoints else None
    status: dict[str, Any] = {}
    try:
        status = usable_status(json.loads((path / "status.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        status["reason"] = f"status.json: {type(error).__name__}" if checkpoints else None
    facts: dict[str, Any] = {field.name: status.get(field.name) for field in fields(Run)}
    facts["path"] = str(path)
    facts["state"] = _state(status, now=time.time())
    facts["step"] = status.get("step", newest or 0)
    facts["checkpoint"] = newest  # in the folder, whatever the status has
    return Run(**facts)


_TEXTS = ("state", "reason", "host", "job")
_COUNTS = ("pid", "attempt", "step", "total_steps", "samples_seen", "checkpoint")
_TIMES = ("started", "updated")
LAST_TIME = 253_402_300_799.0
"""The end of the year 9999, in unix seconds."""


def usable_status(content: Any) -> dict[str, Any]:
    """The entries of a status.json that have the type that a run writes. Raises TypeError if it is
    no object."""
    if not isinstance(content, dict):
        raise TypeError(f"{type(content).__name__} instead of an object")
    usable: dict[str, Any] = {}
    for name, value in content.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _TEXTS:
            is_right = isinstance(value, str)
        elif name in _COUNTS:
            is_right = is_number and isinstance(value, int) and 0 <= value < 1 << 63
        elif name in _TIMES:
            is_right = is_number and 0 <= value <= LAST_TIME
        else:
            is_right = is_number and abs(value) < 1e300
        if is_right:
            usable[name] = value
    return usable


def _state(status: dict[str, Any], *, now: float) -> str:
    state = str(status.get("state", "unknown"))
    if state != "running":
        return state
    if not {"pid", "started", "updated"} <= set(status):
        return "unknown"
    if status.get("host") == socket.gethostname():
        return state if is_alive(status["pid"], status["started"]) else "dead"
    return state if now - float(status["updated"]) < SILENT_SECONDS else "silent"


def is_alive(pid: int, started: float) -> bool:
    """Whether process `pid` of this host lives, and is not a later one with the same number.

    started: unix seconds at which the process had begun at the latest
    """
    if not 0 < pid < 1 << 31:
        return False  # 0 would mean a group of processes
    try:
        os.kill(pid, 0)  # signal 0 is not delivered: only the check is made
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(x for x in Path("/proc/stat").read_text().splitlines() if x[:6] == "btime ")
    except OSError:
        return True  # no /proc on this system
    # Field 22 of stat, the 20th after the name: the start in clock ticks since the boot.
    born = int(boot.split()[1]) + int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return after_name[0] not in "ZX" and born <= started + 2  # btime is in whole seconds


def run_dir_of(target: str, overrides: Sequence[str]) -> Path:
    """The run folder that `clipx train TARGET key=value ...` writes, or TARGET if that is no YAML
    file."""
    if not target.endswith((".yaml", ".yml")):
        return Path(target)
    data = read_layers(Path(target))
    for override in overrides:
        data = merge(data, parse_override(override))
    if not isinstance(data.get("run_dir"), str):
        raise UserError(f"config {target} names no run_dir; give one with run_dir=")
    return Path(data["run_dir"])


def check(targets: Sequence[str], overrides: Sequence[str]) -> int:
    """Print step/total of one run. Returns EXIT_FINISHED or EXIT_UNFINISHED. Raises UserError if
    there is no such run."""
    if len(targets) != 1:
        raise UserError(f"--check takes one run, not {len(targets)}")
    path = run_dir_of(targets[0], overrides)
    if not find([path], depth=0):
        raise UserError(
            f"{path} holds no run: neither status.json nor config.yaml and checkpoints/"
        )
    run = read(path)
    print(run.progress)
    return EXIT_FINISHED if run.state == "finished" else EXIT_UNFINISHED


def show(targets: Sequence[str], overrides: Sequence[str], *, as_json: bool) -> None:
    """Print a table, or one JSON list."""
    runs = [read(path) for path in find([run_dir_of(t, overrides) for t in targets])]
    if as_json:
        print(strict_json.dumps([asdict(run) for run in runs]))
        return
    now = time.time()
    rows: list[tuple[str, ...]] = [HEADER]
    for run in runs:
        rows.append(_row(run, now=now))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    for run in runs:
        if run.reason and run.state != "finished":
            print(f"{run.path}: {run.reason}")


HEADER = ("run", "state", "step", "samples", "loss", "samples/s", "checkpoint", "updated", "where")


def _row(run: Run, *, now: float) -> tuple[str, ...]:
    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    where = run.host or "-"
    if run.job:
        where += f", job {run.job}"
    if run.attempt:
        where += f", start {run.attempt + 1}"
    return (
        run.path,
        run.state,
        run.progress,
        text(run.samples_seen, ","),
        text(run.loss, ".4f"),
        text(run.samples_per_second, ",.0f"),
        text(run.checkpoint, "d"),
        "-" if run.updated is None else f"{_ago(now - run.updated)} ago",
        where,
    )


def _ago(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `2 d`"""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
