"""What each rank does in tests/distributed/test_agreement.py, where the last rank differs."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from clipx.distributed.runtime import Runtime
from clipx.training import cached_features as features
from clipx.training import resume
from clipx.training.interruption import Interrupted, Stop, leave_if_signaled
from clipx.types import Stopped, UserError


def is_last(runtime: Runtime) -> bool:
    return runtime.rank == runtime.world_size - 1


def interrupted(runtime: Runtime, fault: bool) -> str:
    """A signal, or a full disk, while features are cached."""

    def act() -> None:
        if is_last(runtime):
            raise OSError("full") if fault else Interrupted("SIGTERM")

    try:
        features._together(runtime, Path("features"), act)
    except (Stopped, UserError) as error:
        return f"{type(error).__name__}: {error}"
    return "goes on"


def signaled(runtime: Runtime, comes: bool) -> str:
    stop = Stop()
    if comes and is_last(runtime):
        stop._heard(signal.SIGHUP)
    try:
        leave_if_signaled(runtime, stop)
    except Stopped as error:
        return str(error)
    return "goes on"


def resumed(runtime: Runtime, folder: Path) -> tuple[int, list[str]]:
    """The newest checkpoint cannot be read on the last rank."""
    corpus: Any = SimpleNamespace(digest="ab", layout_digest="other")
    parts: Any = SimpleNamespace()

    def load(path: Path, parts: Any) -> tuple[Any, str | None]:
        step = int(path.name.removeprefix("step_"))
        if step == 2 and is_last(runtime):
            return None, f"checkpoint {path} cannot be read: gone"
        return SimpleNamespace(state=SimpleNamespace(step=step, corpus_digest="ab")), None

    resume._load = load  # this process is for tests alone
    run: Any = SimpleNamespace(path=folder, checkpoints=folder / "checkpoints")
    saved, messages = resume.newest(
        runtime, run if runtime.is_main else None, corpus, parts, accept=False
    )
    assert saved is not None
    return saved.state.step, messages
