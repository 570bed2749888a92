"""From positions to samples. A bad sample is recorded and replaced; no other changes its place."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from clipx.data.captions import NO_CAPTION, Caption, CaptionFields
from clipx.data.decode import MAX_BYTES, BadImage, TooLarge
from clipx.data.order import Located, Mixture, Order, corpus_digest
from clipx.data.sample import BAD_SAMPLE_ERRORS, BadSample, Raw, SampleError, Source
from clipx.types import UserError

MAX_ATTEMPTS = 64  # where half of a corpus is bad, one position in 2^64 needs more
T = TypeVar("T")
SkipList = Mapping[int, set[str]]
"""shard -> keys of samples to replace unread"""


@dataclass(frozen=True)
class Sample:
    """An encoded picture and its caption. note: see Raw"""

    key: str
    image: bytes
    caption: Caption
    note: str = ""


@dataclass(frozen=True)
class Used(Generic[T]):
    """The sample that was used at a position, the value that was computed from it, and the bad
    samples that it replaces."""

    value: T
    key: str
    shard: int
    sample: int
    bad: list[BadSample] = field(default_factory=list)


class Corpus:
    """The samples of several sources, by (shard, sample) or by position in the run's order. Shards
    are numbered through all sources.

    order_shards: shard of the corpus for each shard of the order, which lists the shards of a
        repeated source several times
    fields: where captions are; None for a corpus that is read without captions
    max_image_bytes: larger images are bad, and are not read
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        order: Order | Mixture,
        order_shards: np.ndarray,
        fields: CaptionFields | None,
        *,
        max_image_bytes: int = MAX_BYTES,
    ) -> None:
        self.sources = dict(sources)
        self.order = order
        self.fields = fields
        self.max_image_bytes = max_image_bytes
        self.num_samples = order.epoch_samples  # of an epoch, with repetitions
        self.sizes = np.concatenate([source.sizes for source in sources.values()])
        self.num_shards = len(self.sizes)
        self.first_sample = np.cumsum(self.sizes) - self.sizes  # of each shard, among all samples
        self.is_remote = False
        self.faults: list[BadSample] = []  # of whole shards, detected at the start
        self.skip: SkipList = {}
        self.skip_unknown = 0
        self.messages: list[str] = []  # for the person who starts a run
        self._order_shards = order_shards
        self._source_list = list(sources.values())
        self._first_shard = [0]  # of each source
        for source in self._source_list:
            self.is_remote |= source.is_remote
            self.faults += source.faults
            self._first_shard.append(self._first_shard[-1] + len(source.sizes))

    def table(self) -> Iterator[tuple[str, int, str]]:
        """(source and file name, samples, digest) of each shard."""
        for name, source in self.sources.items():
            for shard, digest in enumerate(source.digests):
                # Without the folder: a corpus that is moved is the same corpus.
                file_name = source.name(shard).rpartition("/")[2]
                yield f"{name}/{file_name}", int(source.sizes[shard]), digest

    @property
    def digest(self) -> str:
        return corpus_digest((name, digest) for name, _, digest in self.table())

    @property
    def layout_digest(self) -> str:
        """The digest in checkpoints that were written before digests covered contents."""
        return corpus_digest((name, digest.partition(":")[0]) for name, _, digest in self.table())

    def locate(self, positions: np.ndarray) -> Located:
        """positions: (P,) int64"""
        located = self.order.locate(positions)
        return Located(self._order_shards[located.shard], located.sample)

    def _source_of(self, shard: int) -> tuple[Source, int]:
        """The source of a shard and the shard's number in it."""
        index = bisect_right(self._first_shard, shard) - 1
        return self._source_list[index], shard - self._first_shard[index]

    def name(self, shard: int) -> str:
        source, number = self._source_of(shard)
        return source.name(number)

    def key(self, shard: int, sample: int) -> str:
        """Raises OSError where the shard is gone."""
        source, number = self._source_of(shard)
        return source.key(number, sample)

    def read(self, shard: int, sample: int) -> Sample:
        """Raises SampleError, BadImage, OSError."""
        raw = self.read_raw(shard, sample)
        caption = NO_CAPTION if self.fields is None else self.fields.of(raw)
        return Sample(raw.key, raw.image, caption, raw.note)

    def read_raw(self, shard: int, sample: int) -> Raw:
        """Raises SampleError, BadImage, OSError."""
        source, number = self._source_of(shard)
        return source.read(number, sample, max_image_bytes=self.max_image_bytes)

    def prefetch(self, positions: np.ndarray) -> None:
        """Start fetching the shards of positions that will soon be read. Returns at once."""
        # A dictionary removes repetitions and keeps the order of need.
        for shard in dict.fromkeys(self.locate(positions).shard.tolist()):
            source, number = self._source_of(shard)
            source.prefetch([number])

    def usable(self, position: int, shard: int, sample: int, use: Callable[[Sample], T]) -> Used[T]:
        """Call `use` with the sample, or with the position's first replacement that is good.

        Only `use` decodes the picture, and so decides whether the sample is good: it raises
        BadImage. Raises UserError where no replacement is good.
        """
        bad = []
        for attempt in range(MAX_ATTEMPTS):
            if attempt:  # the sample before was bad
                # The order chooses by its own numbers: a repeated shard has several, all alike.
                in_order = int(np.flatnonzero(self._order_shards == shard)[0])
                substitute, sample = self.order.replacement(position, attempt, in_order)
                shard = int(self._order_shards[substitute])
            try:
                if shard in self.skip and self.key(shard, sample) in self.skip[shard]:
                    continue
                candidate = self.read(shard, sample)
                value = use(candidate)
            except BAD_SAMPLE_ERRORS as error:
                bad.append(self.bad_sample(position, shard, sample, error))
            except Exception as error:  # a fault of the code, not of the sample
                error.add_note(f"while reading sample {sample} of {self.name(shard)}")
                raise
            else:
                bad += self.notes(position, shard, candidate)
                return Used(value, candidate.key, shard, sample, bad)
        message = f"{MAX_ATTEMPTS} samples in a row cannot be used"
        if bad:
            message += f"; the last: {bad[-1].key} of {bad[-1].shard}: {bad[-1].message}"
        raise UserError(f"{message}. Check data.shards and data.caption_field")

    def bad_sample(
        self, position: int, shard: int, sample: int, error: SampleError | BadImage | OSError
    ) -> BadSample:
        """The record of a bad sample for the quarantine."""
        stage = "image"
        if isinstance(error, SampleError):
            stage = error.stage
        elif isinstance(error, OSError):
            stage = "read"
        message = str(error)
        if isinstance(error, TooLarge):
            message += f"; raise data.{error.setting} to use such images"
        try:
            key = self.key(shard, sample)
        except OSError:  # the whole shard is gone, and its keys with it
            key = ""
            message = f"sample {sample}: {error}"
        return BadSample(self.name(shard), key, position, stage, type(error).__name__, message)

    def notes(self, position: int, shard: int, sample: Sample) -> list[BadSample]:
        """Records of faults of the shard that a good sample shows."""
        if not sample.note:
            return []
        return [BadSample(self.name(shard), "", position, "shard", "SizesJson", sample.note)]


def read_skip_list(path: Path, corpus: Corpus) -> tuple[SkipList, int]:
    """(samples of a quarantine file that are in this corpus, number of lines that are not). Raises
    UserError."""
    numbers: dict[str, list[int]] = {}  # a shard may be in several sources
    for number in range(corpus.num_shards):
        numbers.setdefault(corpus.name(number), []).append(number)
    skip: dict[int, set[str]] = {}
    num_unknown = 0
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            shard = line["shard"]
            key = line["key"]
            if not key or line.get("stage") == "key":
                continue  # a repeated key also names its first sample, which is good
            if not (isinstance(shard, str) and isinstance(key, str)):
                raise TypeError("a shard or key that is no text")
            num_unknown += shard not in numbers
            for number in numbers.get(shard, []):
                skip.setdefault(number, set()).add(key)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"data.skip {path} cannot be read as JSON lines with `shard` and `key`, such as "
            f"`clipx data verify --out` writes: {type(error).__name__}: {error}"
        ) from error
    return skip, num_unknown
