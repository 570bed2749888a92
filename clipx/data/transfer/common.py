"""What all ways to a remote file share: its description, patience, deadlines."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ShardFile:
    """A file of a store, as it was when it was found.

    url: as the user wrote it, after expansion
    size: bytes; -1 where the store does not tell
    stamp: changes when the file changes (ETag, else the time of modification), else ""
    md5: hex MD5 of the content where the store gives one, else ""
    """

    url: str
    size: int
    stamp: str
    md5: str


@dataclass(frozen=True)
class Patience:
    """attempts: per file, the first included; stall_seconds: without a byte, or without an answer;
    backoff_seconds: before the second attempt, twice as long before each further one."""

    attempts: int = 5
    stall_seconds: float = 60.0
    backoff_seconds: float = 0.5


PATIENCE = Patience()


class Refused(OSError):
    """An answer that stays the same however often one asks."""


class Busy(OSError):
    """A store that asks to be left alone for a while."""

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


MOST_WAIT_SECONDS = 300.0  # of what a store asks for: longer looks like a hang
_FINAL = (FileNotFoundError, PermissionError, Refused)


def retry(attempt: Callable[[], T], patience: Patience, url: str) -> T:
    """What the first attempt that succeeds returns. Raises OSError with the url and the cause:
    FileNotFoundError, PermissionError and Refused at once."""
    for number in range(1, patience.attempts + 1):
        asked_seconds = 0.0
        try:
            return attempt()
        except OSError as error:
            final = next((kind for kind in _FINAL if isinstance(error, kind)), None)
            if final is not None:
                raise final(f"{url}: {_text(error)}") from error
            if number == patience.attempts:
                raise OSError(f"{url}: {_text(error)} (attempt {number})") from error
            if isinstance(error, Busy):
                asked_seconds = min(error.wait_seconds, MOST_WAIT_SECONDS)
        wait = patience.backoff_seconds * 2 ** (number - 1)
        # Ranks must not return in step.
        time.sleep(asked_seconds + min(wait, 30.0) * random.uniform(0.5, 1.5))
    raise ValueError(f"{patience.attempts} attempts: at least one is needed")


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def check_stamp(file: ShardFile, now: ShardFile) -> None:
    if file.stamp and now.stamp and file.stamp != now.stamp:
        raise OSError(f"has changed since the start: was {file.stamp}, is {now.stamp}")


def within(seconds: float, call: Callable[..., T], *args: Any, **more: Any) -> T:
    """What the call returns. Raises OSError, and TimeoutError where it has not come back: fsspec
    has no deadline that holds for all stores, so a call that hangs stays behind in its thread."""
    answer: queue.SimpleQueue[tuple[list[T], Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put(([call(*args, **more)], None))
        except Exception as error:  # noqa: BLE001 raised by the caller
            answer.put(([], error))

    threading.Thread(target=run, daemon=True, name="clipx-remote").start()
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    if error is None:
        return value[0]
    if isinstance(error, OSError):
        raise error
    kind = PermissionError if "Credential" in type(error).__name__ else OSError
    raise kind(f"{type(error).__name__}: {error}") from error
