"""The run folder: the files of a run, by which a second start continues it.

config.yaml        the resolved config
version.json       versions of code and libraries, one line per start
metrics.jsonl      one line per log step
results.jsonl      one line per evaluation
quarantine.jsonl   one line per bad sample
nonfinite.jsonl    one line per skipped step and rank, with its sample keys
corpus.tsv         name, number of samples and digest of each shard
evaluations/       results of `clipx eval --out`
status.json        progress, and whether the process is alive
lock               held by the process of rank 0
checkpoints/       see clipx/checkpoints/format.py
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from clipx import __version__
from clipx.checkpoints.manifest import list_checkpoints
from clipx.config import build, to_data
from clipx.config_diff import differences, setting_at
from clipx.distributed.runtime import job
from clipx.files import write_whole
from clipx.training.changeable import MAY_CHANGE, is_among
from clipx.training.config import TrainConfig
from clipx.training.run_lock import RunLock
from clipx.training.run_status import RunStatus, State
from clipx.types import UserError
from clipx.yaml_text import parse_mapping


class RunFolder:
    """Opened by rank 0 alone. Raises UserError if the folder cannot be written or belongs to
    another config.

    messages: for the log; status: see `RunStatus`
    texts: files that describe the run in each of its checkpoints, name -> content
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        config_yaml: str,
        *,
        total_steps: int,
        may_change: tuple[str, ...] = (),
        how: Mapping[str, Any] | None = None,
    ) -> None:
        """may_change: settings beside MAY_CHANGE that the user allows to differ
        how: this start computes, for version.json: what `auto` settings have become"""
        self.path = path
        self.checkpoints = path / "checkpoints"
        version_line = json.dumps(code_version() | dict(how or {})) + "\n"
        self.texts = {"config.yaml": config_yaml, "version.json": version_line}
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            # First of all: another process may be writing the files that are read below.
            self._lock = RunLock(path, job())
        except OSError as error:
            raise unwritable(path, error) from error
        self.messages = [self._lock.message] if self._lock.message else []
        try:
            self._check_config(config, (*MAY_CHANGE, *may_change))
            write_whole(path / "config.yaml", config_yaml)
            with (path / "version.json").open("a") as file:
                file.write(version_line)
        except OSError as error:
            self._lock.release()
            raise unwritable(path, error) from error
        except UserError:
            self._lock.release()
            raise
        self.status = RunStatus(path / "status.json", job(), total_steps=total_steps)

    def close(self, state: State, reason: str | None) -> None:
        """Record how the run ended, and release the folder."""
        self.status.end(state, reason)
        self._lock.release()

    def _check_config(self, config: dict[str, Any], may_change: tuple[str, ...]) -> None:
        """Raise UserError if the folder's run has another config and a checkpoint."""
        stored = self._stored_config()
        if stored is None:
            return
        stored = _completed(stored)
        changed = []
        for key in differences(stored, config):
            if not is_among(key, may_change):
                changed.append(key)
        if not changed:
            return
        # Nothing of the earlier start would be mixed with this one.
        if not list_checkpoints(self.checkpoints):
            self.messages.append(
                f"the config differs from that of an earlier start ({', '.join(changed)}), which "
                "has left no checkpoint: it starts anew"
            )
            return
        raise UserError(
            f"run_dir {self.path} belongs to another config: {', '.join(changed)} differ. "
            "Choose another run_dir=, or delete the folder to start again, or go on with the "
            f"run's own values: {_overrides(stored, changed)}"
        )

    def _stored_config(self) -> dict[str, Any] | None:
        """The config of the run: of its folder, or of its newest checkpoint that has one. None for
        a new run. Raises UserError if all copies are damaged."""
        checkpoints = list_checkpoints(self.checkpoints)
        files = [self.path / "config.yaml"]
        files += [folder / "config.yaml" for folder in reversed(checkpoints)]
        present = [file for file in files if file.exists()]
        for file in present:
            # All copies are equal, so a damaged one is passed over.
            config = parse_mapping(file.read_text(encoding="utf-8", errors="replace"))
            if config is not None:
                if file != files[0]:
                    self.messages.append(f"{files[0]} is missing or damaged; {file} is taken")
                return config
        if present and checkpoints:
            raise UserError(
                f"run_dir {self.path}: {present[0]} is damaged, so it is unknown which config its "
                "checkpoints are of. Restore it from a backup, or choose another run_dir="
            )
        return None


def _completed(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored config with the defaults of settings that are newer than it. As it is, where it has
    settings that are gone."""
    completed = dict(stored)
    if isinstance(stored.get("data"), dict):
        # The default is another, but runs from before this setting had pixels as stored.
        completed["data"] = {"exif_orientation": False} | stored["data"]
    try:
        return to_data(build(TrainConfig, completed, where="of the run"))
    except UserError:
        return stored


def _overrides(config: dict[str, Any], settings: list[str]) -> str:
    """`a.b=value` of some dotted settings, as a command takes them."""
    shown = []
    for setting in settings:
        value = json.dumps(setting_at(config, setting), default=str)
        shown.append(shlex.quote(f"{setting}={value}"))
    return " ".join(shown)


def unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"run_dir {path} cannot be written: {error}; choose another with run_dir=")


def _installed(package: str) -> str | None:
    """The version of a package; None if it is not installed, as in a checkout on the path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def code_version() -> dict[str, Any]:
    """Versions and hardware behind a run's numbers."""
    return {
        "clipx": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "open_clip": _installed("open_clip_torch"),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        **hardware(),
    }


def hardware() -> dict[str, str | None]:
    """Names and numbers of processors; gpu is None without one."""
    cpu = platform.processor() or platform.machine()
    table = Path("/proc/cpuinfo")  # platform.processor() is empty on many Linux systems
    if table.exists():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "cpu": f"{cpu} x {os.cpu_count()}",
        "gpu": f"{gpus[0]} x {len(gpus)}" if gpus else None,
    }


def _commit() -> str | None:
    """The commit of the source tree, with `+` if files differ from it; None outside of a
    checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    outputs = []
    try:
        for command in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
            done = subprocess.run([*git, *command], capture_output=True, text=True, check=True)
            outputs.append(done.stdout.strip())
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or no checkout
        return None
    commit, changed_files = outputs
    return f"{commit}+" if changed_files else commit
