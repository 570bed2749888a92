"""One sample of a corpus, its faults, and the interface of a source of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from clipx.data.decode import BadImage


@dataclass(frozen=True)
class Raw:
    """One sample as a source stores it.

    image: an encoded picture
    text: fields that may contain captions, by name: texts, lists of texts, or UTF-8 bytes. `txt` is
        the caption of a source without field names, `json` an object with further fields, as bytes
    note: a fault of the shard that does not affect this sample, for the quarantine
    """

    key: str
    image: bytes
    text: Mapping[str, Any]
    note: str = ""


PARTIAL = ("TruncatedTar", "DamagedTar", "SecondImage", "SizesJson")
"""Errors of shards that cost only some of their samples."""


class SampleError(ValueError):
    """A sample that cannot be used. `stage` is read, key, image or caption."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


BAD_SAMPLE_ERRORS = (SampleError, BadImage, OSError)
"""Raised where a sample cannot be read, decoded or captioned."""


@dataclass(frozen=True)
class BadSample:
    """A line of quarantine.jsonl. A fault of a whole shard has no key and position -1."""

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
    """Samples in shards, addressed by two integers. `Config.build()` of a module in
    clipx/data/sources returns one.

    A source contains tables and no open files: it is pickled, sent to all ranks and inherited by
    worker processes. Its samples and their numbers never change during its life.
    """

    sizes: np.ndarray
    """(number of shards,) int64 samples in each. Samples of one shard are read close together."""

    fields: frozenset[str] | None
    """Names of all text fields where they are known without reading, None where each sample has
    its own."""

    is_remote: bool
    """True where reading goes over a network, so that `prefetch` saves time."""

    faults: Sequence[BadSample]
    """Faults of whole shards, detected when the source was opened."""

    @property
    def digests(self) -> Sequence[str]:
        """One per shard, which changes with its samples, their order and their bytes, as far as
        docs/data.md promises. Of `layout:content`, runs before version 4 of the index recorded the
        layout alone."""
        ...

    def name(self, shard: int) -> str:
        """Path or URL of a shard, for messages and the quarantine."""
        ...

    def key(self, shard: int, sample: int) -> str:
        """Name of a sample, unique within its shard. Raises OSError where the shard is gone."""
        ...

    def read(self, shard: int, sample: int, *, max_image_bytes: int = ...) -> Raw:
        """Raises SampleError, OSError, and BadImage for a larger encoded image. Must be safe to
        call from several processes and threads."""
        ...

    def prefetch(self, shards: Sequence[int]) -> None:
        """Start fetching shards that will soon be read, in the order of need. Returns at once."""
        ...
