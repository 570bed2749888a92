"""Positions -> raw samples. A bad sample is named, quarantined and replaced; the order of all
others stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from clipx.data.captions import Caption, CaptionFields
from clipx.data.decode import MAX_BYTES, BadImage, TooLarge
from clipx.data.order import Located, Mixture, Order, corpus_digest
from clipx.data.sample import BadSample, Raw, SampleError, Source
from clipx.types import UserError

MAX_ATTEMPTS = 64  # with half of a corpus bad, a run that needs more has a chance of 2^-64
T = TypeVar("T")
Skip = Mapping[int, frozenset[str]]
"""shard -> keys that are known to be bad"""


@dataclass(frozen=True)
class Sample:
    """One sample as stored. note: see Raw"""

    key: str
    image: bytes
    caption: Caption
    note: str = ""


@dataclass(frozen=True)
class Used(Generic[T]):
    """What was made of the sample that a position came to, and what was bad on the way."""

    value: T
    key: str
    shard: int
    sample: int
    bad: list[BadSample] = field(default_factory=list)


class Corpus:
    """The samples of several sources, addressed by (shard, sample) or by position in the run's
    order. Shards are numbered through all sources.

    order_shards: the shard that each of the order's stands for: a source that is repeated is in the
    order several times
    max_image_bytes: larger images are bad, and not read
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        order: Order | Mixture,
        order_shards: np.ndarray,
        fields: CaptionFields,
        *,
        max_image_bytes: int = MAX_BYTES,
    ) -> None:
        self.sources, self.order, self.fields = dict(sources), order, fields
        self.max_image_bytes = max_image_bytes
        self._order_shards = order_shards
        self._of = list(self.sources.values())
        counts = [len(source.sizes) for source in self._of]
        self.sizes = np.concatenate([source.sizes for source in self._of])
        self._source_of = np.repeat(np.arange(len(counts)), counts)
        self._first = np.cumsum([0, *counts])
        self.skip: Skip = {}
        self.skip_unknown = 0
        self.messages: list[str] = []  # for the person who starts a run

    @property
    def num_samples(self) -> int:
        """Of an epoch: all samples, as often as they are repeated."""
        return self.order.epoch_samples

    @property
    def num_shards(self) -> int:
        return len(self.sizes)

    @property
    def faults(self) -> list[BadSample]:
        """Whole shards that were found to be bad at the start."""
        return [fault for source in self._of for fault in source.faults]

    def table(self) -> Iterator[tuple[str, int, str]]:
        """(source and name without its folder, samples, digest) of each shard."""
        for name, source in self.sources.items():
            for shard, digest in enumerate(source.digests):
                base = source.name(shard).rpartition("/")[2]
                yield f"{name}/{base}", int(source.sizes[shard]), digest

    @property
    def digest(self) -> str:
        return corpus_digest((name, digest) for name, _, digest in self.table())

    @property
    def layout_digest(self) -> str:
        """The digest of runs whose checkpoints were written before digests covered contents."""
        return corpus_digest((name, digest.partition(":")[0]) for name, _, digest in self.table())

    def locate(self, positions: np.ndarray) -> Located:
        """positions: (P,) int64"""
        found = self.order.locate(positions)
        return Located(self._order_shards[found.shard], found.sample)

    def name(self, shard: int) -> str:
        source, own = self._source(shard)
        return source.name(own)

    def key(self, shard: int, sample: int) -> str:
        """Raises OSError where the shard is gone."""
        source, own = self._source(shard)
        return source.key(own, sample)

    def read(self, shard: int, sample: int) -> Sample:
        """Raises SampleError, BadImage, OSError."""
        raw = self.raw(shard, sample)
        return Sample(raw.key, raw.image, self.fields.of(raw), raw.note)

    def raw(self, shard: int, sample: int) -> Raw:
        """Raises SampleError, BadImage, OSError."""
        source, own = self._source(shard)
        return source.read(own, sample, max_image_bytes=self.max_image_bytes)

    @property
    def is_remote(self) -> bool:
        return any(source.is_remote for source in self._of)

    def prefetch(self, positions: np.ndarray) -> None:
        """Told what will soon be read. Returns at once."""
        shards = self.locate(positions).shard
        _, first = np.unique(shards, return_index=True)
        for shard in shards[np.sort(first)].tolist():
            source, own = self._source(shard)
            source.prefetch([own])

    def usable(self, position: int, shard: int, sample: int, use: Callable[[Sample], T]) -> Used[T]:
        """`use` of the sample, or of the position's first replacement that is good."""
        bad: list[BadSample] = []
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                shard, sample = self._replacement(position, attempt, shard)
            try:
                if shard in self.skip and self.key(shard, sample) in self.skip[shard]:
                    continue
                found = self.read(shard, sample)
                value = use(found)
                bad += self.notes(position, shard, found)
                return Used(value, found.key, shard, sample, bad)
            except (SampleError, BadImage, OSError) as error:
                bad.append(self.bad_sample(position, shard, sample, error))
            except Exception as error:
                error.add_note(f"while reading sample {sample} of {self.name(shard)}")
                raise
        text = f"{MAX_ATTEMPTS} samples in a row cannot be used"
        if bad:
            text += f"; the last: {bad[-1].key} of {bad[-1].shard}: {bad[-1].message}"
        raise UserError(f"{text}. Check data.shards and data.caption_field")

    def bad_sample(
        self, position: int, shard: int, sample: int, error: SampleError | BadImage | OSError
    ) -> BadSample:
        """The line of the quarantine."""
        stage = error.stage if isinstance(error, SampleError) else "image"
        stage = "read" if isinstance(error, OSError) else stage
        message = str(error)
        if isinstance(error, TooLarge):
            message += f"; raise data.{error.setting} to use such images"
        try:
            key = self.key(shard, sample)
        except OSError:  # the whole shard is gone, and with it the keys
            key, message = "", f"sample {sample}: {error}"
        return BadSample(self.name(shard), key, position, stage, type(error).__name__, message)

    def notes(self, position: int, shard: int, sample: Sample) -> list[BadSample]:
        """Lines of the quarantine for what a good sample shows to be wrong with its shard."""
        if not sample.note:
            return []
        return [BadSample(self.name(shard), "", position, "shard", "SizesJson", sample.note)]

    def _replacement(self, position: int, attempt: int, shard: int) -> tuple[int, int]:
        place = int(np.flatnonzero(self._order_shards == shard)[0])
        found, sample = self.order.replacement(position, attempt, place)
        return int(self._order_shards[found]), sample

    def _source(self, shard: int) -> tuple[Source, int]:
        number = self._source_of[shard]
        return self._of[number], int(shard - self._first[number])


def read_skip_list(path: Path, corpus: Corpus) -> tuple[Skip, int]:
    """(what of a quarantine file is in this corpus, lines that are not). Raises UserError."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        # A key that comes again names its first sample too, which is good.
        told = [line for line in lines if line["key"] and line.get("stage") != "key"]
        pairs = [(line["shard"], line["key"]) for line in told]
        if not all(isinstance(text, str) for pair in pairs for text in pair):
            raise TypeError("a shard or key that is no text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"data.skip {path} cannot be read as JSON lines with `shard` and `key`, such as "
            f"`clipx data verify --out` writes: {type(error).__name__}: {error}"
        ) from error
    numbers: dict[str, list[int]] = {}  # a shard may be in several sources
    for number in range(corpus.num_shards):
        numbers.setdefault(corpus.name(number), []).append(number)
    skip: dict[int, set[str]] = {}
    for shard, key in pairs:
        for number in numbers.get(shard, []):
            skip.setdefault(number, set()).add(key)
    unknown = sum(shard not in numbers for shard, _ in pairs)
    return {shard: frozenset(keys) for shard, keys in skip.items()}, unknown
