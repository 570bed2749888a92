"""An integer of each sample of a corpus, such as its label: read once, and then kept in the user's
cache directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipx.data.shards import in_threads
from clipx.data.sources.webdataset import close_shards
from clipx.files import cache_folder, replacing

_VERSION = 1
_CHUNK = 10_000  # samples between two reports of progress


def read_values(
    total: int, value_of: Callable[[int], int | None], advance: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 values, and (N,) bool where they are known.

    value_of: number of a sample -> its value, None if it cannot be read; called in several threads
    advance: called with the number of samples done
    """
    values = np.zeros(total, dtype=np.int64)
    is_known = np.zeros(total, dtype=np.bool_)
    for first in range(0, total, _CHUNK):
        numbers = range(first, min(total, first + _CHUNK))
        for number, value in zip(numbers, in_threads(value_of, numbers), strict=True):
            if value is not None:
                values[number] = value
                is_known[number] = True
        advance(len(numbers))
    close_shards()  # forked workers would inherit hundreds of open files
    return values, is_known


@dataclass(frozen=True)
class Store:
    """A file with one integer of each sample."""

    file: Path

    def load(self, total: int) -> np.ndarray | None:
        """(N,) int64; None if the file is missing or damaged."""
        with suppress(OSError, ValueError, EOFError):
            values = np.load(self.file)
            if values.shape == (total,) and values.dtype == np.int64:
                return values
        return None

    def save(self, values: np.ndarray) -> None:
        """values: (N,) int64"""
        with suppress(OSError):  # a disk that is full or read-only costs the next start
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as temporary, temporary.open("wb") as opened:
                np.save(opened, values)


def store_of(kind: str, *identity: object) -> Store:
    """kind: name of a folder; identity: of all that the values depend on, such as digests that
    cover the contents of the corpus, so that an entry never has to be removed"""
    name = hashlib.sha1(repr((_VERSION, *identity)).encode()).hexdigest()
    return Store(cache_folder(kind) / f"{name}.npy")
