"""What all transfers share: the description of a file, attempts and deadlines.

One loop of attempts serves HTTP, object stores and pipes, and continues where an answer broke off.
urllib3's Retry ends at the headers of an answer, and knows none of the others.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
MAX_WAIT_SECONDS = 300.0  # at a store's request; longer would look like a hang


@dataclass(frozen=True)
class ShardFile:
    """A file of a store, in the state in which it was found.

    url: as the user wrote it, after expansion
    size: bytes; -1 if the store does not give it
    stamp: changes when the file does (ETag, else the time of modification), or ""
    md5: hexadecimal MD5 of the content if the store gives one, or ""
    """

    url: str
    size: int
    stamp: str
    md5: str


@dataclass(frozen=True)
class Patience:
    """attempts: for one file, including the first
    stall_seconds: deadline for the next byte or an answer
    backoff_seconds: wait before the second attempt, doubled before each further one
    """

    attempts: int = 5
    stall_seconds: float = 60.0
    backoff_seconds: float = 0.5


PATIENCE = Patience()


class Refused(OSError):
    """An answer that another attempt would not change."""


class Busy(OSError):
    """A refusal for a time, `wait_seconds`, that the store names."""

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


def retry(attempt: Callable[[], T], patience: Patience, url: str) -> T:
    """Return the result of the first attempt that succeeds. Raises OSError with the url and the
    cause; FileNotFoundError, PermissionError and Refused after the first attempt."""
    assert patience.attempts > 0
    for number in range(1, patience.attempts + 1):
        try:
            return attempt()
        except OSError as error:
            cause = str(error) or type(error).__name__
            for kind in (FileNotFoundError, PermissionError, Refused):
                if isinstance(error, kind):
                    raise kind(f"{url}: {cause}") from error
            if number == patience.attempts:
                raise OSError(f"{url}: {cause} (attempt {number})") from error
            busy_seconds = error.wait_seconds if isinstance(error, Busy) else 0.0
        backoff = min(patience.backoff_seconds * 2 ** (number - 1), 30.0)
        jitter = random.uniform(0.5, 1.5)  # ranks that failed together must not return together
        time.sleep(min(busy_seconds, MAX_WAIT_SECONDS) + backoff * jitter)
    raise AssertionError("the last attempt returns or raises")


def check_stamp(file: ShardFile, now: ShardFile) -> None:
    if file.stamp and now.stamp and file.stamp != now.stamp:
        raise OSError(f"has changed since the start: was {file.stamp}, is {now.stamp}")


def within(seconds: float, call: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call with a deadline. Raises OSError for any error of the call, TimeoutError if it has not
    returned in time."""
    # fsspec has no deadline that holds for all stores, so a call that hangs is left in its thread.
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call(*args, **options))
        except Exception as error:  # noqa: BLE001 raised by the caller
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True, name="clipx-remote").start()
    wait([answer], timeout=seconds)
    if not answer.done():
        raise TimeoutError(f"no answer in {seconds:g} s")
    try:
        return answer.result()
    except OSError:
        raise
    except Exception as error:
        kind = PermissionError if "Credential" in type(error).__name__ else OSError
        raise kind(f"{type(error).__name__}: {error}") from error
