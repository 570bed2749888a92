"""Locks between processes, by files: the kernel releases them when their holder is killed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()  # descriptors of this process that hold or await a lock


def _close_inherited() -> None:
    """A forked child that kept them would keep the locks of a parent that is killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file that stays."""
    descriptor = _open(path, os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        _unlock(descriptor)


def claim(path: Path, *, wait: bool) -> int:
    """A descriptor of an empty file that this caller alone writes. Where another has it, waits or
    raises BlockingIOError."""
    while True:
        descriptor = _open(path, os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            _close(descriptor)
            raise
        if _is_at(path, descriptor):  # else it was renamed or removed while we waited
            os.ftruncate(descriptor, 0)
            return descriptor
        _unlock(descriptor)


def release(path: Path, descriptor: int) -> None:
    """Ends a claim. Removes the file, unless it has been renamed."""
    if _is_at(path, descriptor):
        path.unlink(missing_ok=True)
    _unlock(descriptor)


def remove_unclaimed(path: Path) -> bool:
    """False where somebody has the file."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _close(descriptor)
        return False
    release(path, descriptor)
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _open(path: Path, flags: int = 0) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o644)
    _held.add(descriptor)
    return descriptor


def _unlock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    _close(descriptor)


def _close(descriptor: int) -> None:
    _held.discard(descriptor)  # first: the number is free for others from the next line on
    os.close(descriptor)
