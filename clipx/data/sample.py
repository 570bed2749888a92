"""One sample of a corpus, its faults, and the interface of a source of samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from clipx.data.decode import BadImage


@dataclass(frozen=True)
class Raw:
    """One sample as a source stores it.

    image: an encoded picture; empty where none was requested
    text: fields that may contain captions or a label, by name: texts, lists of texts, UTF-8 bytes,
        numbers. `txt` is the caption of a source without field names, `json` an object with further
        fields, as bytes
    note: a fault of the shard that does not affect this sample, for the quarantine
    second_image: the other picture of a pair
    """

    key: str
    image: bytes
    text: Mapping[str, Any]
    note: str = ""
    second_image: bytes = b""

    @cached_property
    def json_fields(self) -> dict[str, Any]:
        """The fields of the `.json` member. Raises SampleError."""
        if "json" not in self.text:
            return {}
        try:
            value = json.loads(self.text["json"])
        except (ValueError, RecursionError) as error:
            raise SampleError("caption", f"the .json member does not parse: {error}") from error
        return value if isinstance(value, dict) else {}  # a list or a number has no fields


PairKind = Literal["images", "texts"]
PAIRS_REMEDY = "list pairs in a table with two columns of paths, or pack them as WebDataset shards"


@dataclass(frozen=True)
class PairFields:
    """The two images or texts of a sample that is a pair, by the names of their fields."""

    kind: PairKind
    names: tuple[str, str]

    @property
    def image_names(self) -> tuple[str, ...]:
        return self.names if self.kind == "images" else ()


PARTIAL = ("TruncatedTar", "DamagedTar", "SecondImage", "SizesJson")
"""Errors of shards that cost only some of their samples."""


class SampleError(ValueError):
    """A sample that cannot be used. `stage` is read, key, image, caption or label."""

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

    def identity(self, shard: int, sample: int) -> str:
        """Name of a sample that stays the same when the source grows or is put into another order,
        by which `data.held_out` chooses; two samples may have the same. Raises OSError where the
        shard is gone."""
        ...

    def read(
        self,
        shard: int,
        sample: int,
        *,
        max_image_bytes: int = ...,
        images: Sequence[str] | None = ...,
    ) -> Raw:
        """Raises SampleError, OSError, and BadImage for a larger encoded image. Must be safe to
        call from several processes and threads.

        images: names of the images to read instead of the sample's one image: none, or the two of a
            pair. `max_image_bytes` and `images` may be left out
        """
        ...

    def prefetch(self, shards: Sequence[int]) -> None:
        """Start fetching shards that will soon be read, in the order of need. Returns at once."""
        ...


def key_hash(key: str) -> int:
    """63-bit hash of a sample key or another text, the same in all processes."""
    digest = hashlib.sha1(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
