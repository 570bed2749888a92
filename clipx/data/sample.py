"""One sample of a corpus, and what may be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Raw:
    """One sample as a source stores it.

    image: an encoded picture
    text: what may hold captions, by its name: texts, lists of them, or bytes that are to be UTF-8.
    `txt` is the caption of a source without names, `json` an object with more fields, as bytes
    note: what is wrong with the shard, though this sample is good; for the quarantine
    """

    key: str
    image: bytes
    text: Mapping[str, Any]
    note: str = ""


PARTIAL = ("TruncatedTar", "DamagedTar", "SecondImage", "SizesJson")
"""Errors of shards of which only some samples are lost."""


class SampleError(ValueError):
    """A sample that cannot be used. `stage` is read, key, image or caption."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


@dataclass(frozen=True)
class BadSample:
    """A line of quarantine.jsonl. What is wrong with a whole shard has no key and position -1."""

    shard: str
    key: str
    position: int
    stage: str
    error: str
    message: str

    @property
    def is_whole_shard(self) -> bool:
        """True where no sample of the shard can be used."""
        return self.error not in PARTIAL

    def record(self) -> dict[str, str | int]:
        return asdict(self)


class Source(Protocol):
    """Samples in shards, each addressed by two integers: what `Config.build()` of a module in
    clipx/data/sources returns.

    A source holds tables, no open files: it is pickled, sent to all ranks and inherited by worker
    processes. Its samples and their numbers never change while it lives.
    """

    sizes: np.ndarray
    """(number of shards,) int64 samples in each. Shards are units of locality: samples of one are
    read near one another."""

    fields: frozenset[str] | None
    """Names of all text fields, where they are known without reading; None where each sample has
    its own."""

    @property
    def is_remote(self) -> bool:
        """Reading goes over a network, so that `prefetch` is worth a call."""
        ...

    @property
    def digests(self) -> Sequence[str]:
        """Of each shard: another one when its samples, their order or their bytes have changed, as
        far as docs/data.md says. Where it is `layout:content`, the layout alone is what runs before
        version 4 of the index have written down."""
        ...

    @property
    def faults(self) -> Sequence[BadSample]:
        """What was found wrong with whole shards when the source was opened."""
        ...

    def name(self, shard: int) -> str:
        """Path or URL of a shard, for messages and the quarantine."""
        ...

    def key(self, shard: int, sample: int) -> str:
        """Name of a sample, unique within its shard. Raises OSError where the shard is gone."""
        ...

    def read(self, shard: int, sample: int, *, max_image_bytes: int = ...) -> Raw:
        """Raises SampleError, BadImage for an encoded image of more bytes, and OSError. Called from
        several processes and threads."""
        ...

    def prefetch(self, shards: Sequence[int]) -> None:
        """Told, in the order of need, what will soon be read. Returns at once."""
        ...
