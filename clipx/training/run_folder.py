"""The run folder: what a run writes down, and how a second start finds its place.

config.yaml        the resolved config of this run          version.json     code and library
versions, per start
metrics.jsonl      one line per log step                    results.jsonl    one line per evaluation
quarantine.jsonl   one line per bad sample met              corpus.tsv       name, samples and
digest of each shard
nonfinite.jsonl    one line per skipped step and rank with its sample keys
evaluations/       results of `clipx eval --out`
status.json        how far it is; is it alive               lock             held by its process
checkpoints/       see clipx/checkpoints/format.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from clipx.checkpoints.manifest import list_checkpoints
from clipx.config import differences
from clipx.distributed.runtime import Runtime, job
from clipx.files import write_whole
from clipx.training.run_lock import RunLock
from clipx.training.run_status import State, Status
from clipx.types import UserError
from clipx.yaml_text import parse_mapping

# Settings that may change between two starts of one run: they decide how it runs, not what it
# computes.
MAY_CHANGE = (
    "run_dir",
    "device",
    "tensorboard",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "save_async",
    "stop_after",
    "stop_margin",
    "timeout_minutes",
    "evaluators",
    "data.workers",
    "data.decoded_cache",
    "data.max_bad_fraction",
    "data.skip",
    "data.accept_changed_corpus",
    "duration",
    "micro_batch_size",
    "grad_checkpointing",
    "parallel",
    "compile",
    "max_nonfinite_steps",
    "pool.kind",
    "pool.chunk",
)
CORPUS = ("data.shards", "data.sources", "data.weights", "data.repeat")
"""Settings that may change where the user accepts another corpus."""


class RunFolder:
    """Opened by rank 0 alone. Raises UserError when the folder cannot be written or belongs to
    another config."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        config_yaml: str,
        *,
        total_steps: int,
        may_change: Sequence[str] = (),
    ) -> None:
        """may_change: settings beside MAY_CHANGE that the user allows to differ"""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._config_yaml, self._version = config_yaml, json.dumps(code_version()) + "\n"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(path, job())
        except OSError as error:
            raise unwritable(path, error) from error
        self.messages = [self._lock.message] if self._lock.message else []
        try:
            self._check_same(config, (*MAY_CHANGE, *may_change))
            write_whole(path / "config.yaml", config_yaml)
            with (path / "version.json").open("a") as file:
                file.write(self._version)
        except OSError as error:
            self._lock.release()
            raise unwritable(path, error) from error
        except UserError:
            self._lock.release()
            raise
        self.status = Status(path / "status.json", job(), total_steps=total_steps)

    def about(self) -> dict[str, str]:
        """What each checkpoint says of the run that wrote it, by file name."""
        return {"config.yaml": self._config_yaml, "version.json": self._version}

    def close(self, state: State, reason: str | None) -> None:
        """Say how it ended, and let others have it."""
        self.status.end(state, reason)
        self._lock.release()

    def _check_same(self, config: dict[str, Any], may_change: Sequence[str]) -> None:
        old = self._stored_config()
        if old is None:
            return
        changed = [
            key
            for key in differences(old, config)
            if not any(f"{key}.".startswith(f"{may}.") for may in may_change)
        ]
        if not changed:
            return
        if not list_checkpoints(self.checkpoints):
            told = f"the config differs from that of an earlier start ({', '.join(changed)})"
            self.messages.append(f"{told}, which has left no checkpoint: it starts anew")
            return
        raise UserError(
            f"run_dir {self.path} belongs to another config: {', '.join(changed)} differ. "
            "Choose another run_dir=, or delete the folder to start again"
        )

    def _stored_config(self) -> dict[str, Any] | None:
        """The config of the run: of its folder, or of its newest checkpoint that has one. None
        where nothing of the run is there yet. Raises UserError."""
        newest_first = reversed(list_checkpoints(self.checkpoints))
        files = [folder / "config.yaml" for folder in (self.path, *newest_first)]
        present = [file for file in files if file.exists()]
        for file in present:
            # A damaged one is passed over: all of them hold the same.
            found = parse_mapping(file.read_text(encoding="utf-8", errors="replace"))
            if found is not None:
                if file != files[0]:
                    self.messages.append(f"{files[0]} is missing or damaged; {file} is taken")
                return found
        if present and len(files) > 1:
            raise UserError(
                f"run_dir {self.path}: {present[0]} is damaged, so it is unknown which config its "
                "checkpoints are of. Restore it from a backup, or choose another run_dir="
            )
        return None


def open_by_main(
    runtime: Runtime, path: Path, config: dict[str, Any], config_yaml: str, **settings: Any
) -> RunFolder | None:
    """The run folder on rank 0, None on the others. Raises UserError on all ranks.

    settings: further arguments of RunFolder
    """
    folder, fault = None, None
    if runtime.is_main:
        try:
            folder = RunFolder(path, config, config_yaml, **settings)
        except UserError as error:
            fault = str(error)
    runtime.agree(fault)
    return folder


def unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"run_dir {path} cannot be written: {error}; choose another with run_dir=")


def _installed(package: str) -> str | None:
    """Version; None where the package is on the path only, as in a container with a checkout."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def code_version() -> dict[str, Any]:
    """What computed this run's numbers."""
    return {
        "clipx": _installed("clipx"),
        "commit": _commit(),
        "torch": torch.__version__,
        "open_clip": _installed("open_clip_torch"),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        **hardware(),
    }


def hardware() -> dict[str, str | None]:
    """What this process computes on; no GPU is None."""
    cpu, table = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if table.exists():
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "cpu": f"{cpu} x {os.cpu_count()}",
        "gpu": f"{gpus[0]} x {len(gpus)}" if gpus else None,
    }


def _commit() -> str | None:
    """The commit of the source tree, with `+` where files differ from it; None outside of a
    checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return (commit + ("+" if git("status", "--porcelain") else "")) or None
    except OSError:
        return None  # no git on this machine
