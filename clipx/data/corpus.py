"""From positions to samples. A bad sample is recorded and replaced; no other changes its place."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from clipx.data.captions import Caption, CaptionFields
from clipx.data.decode import MAX_BYTES, BadImage, TooLarge
from clipx.data.grouped_order import GroupedOrder
from clipx.data.labels import LabelField
from clipx.data.order import Located, Mixture, Order, corpus_digest
from clipx.data.sample import (
    BAD_SAMPLE_ERRORS,
    BadSample,
    PairFields,
    Raw,
    SampleError,
    Source,
)
from clipx.types import UserError

MAX_ATTEMPTS = 64  # where half of a corpus is bad, one position in 2^64 needs more
T = TypeVar("T")
AnyOrder = Order | Mixture | GroupedOrder
SkipList = Mapping[int, set[str]]
"""shard -> keys of samples to replace unread"""


@dataclass(frozen=True)
class Sample:
    """images: encoded pictures: one, the two of a pair, or none of a pair of texts
    captions: one, the two texts of a pair, or none where captions are not used
    label: an integer, where the run uses labels; note: see Raw
    """

    key: str
    images: tuple[bytes, ...]
    captions: tuple[Caption, ...]
    label: int | None = None
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
    pair: where the two images or texts of each sample are, instead of an image and a caption
    label_field: where labels are, if they are used
    max_image_bytes: larger images are bad, and are not read
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        order: AnyOrder,
        order_shards: np.ndarray,
        fields: CaptionFields | None,
        *,
        pair: PairFields | None = None,
        label_field: LabelField | None = None,
        max_image_bytes: int = MAX_BYTES,
    ) -> None:
        self.sources = dict(sources)
        self.order = order
        self.fields = fields
        self.pair = pair
        self.label_field = label_field
        self._texts = [] if fields is None else [fields]  # of each text that a sample has
        if pair is not None and pair.kind == "texts":
            self._texts = [CaptionFields({name: 1.0}, fallback="") for name in pair.names]
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

    def place_of(self, number: int) -> tuple[int, int]:
        """(shard, sample) of a sample by its number among all."""
        shard = int(np.searchsorted(self.first_sample + self.sizes, number, side="right"))
        return shard, number - int(self.first_sample[shard])

    def name(self, shard: int) -> str:
        source, number = self._source_of(shard)
        return source.name(number)

    def key(self, shard: int, sample: int) -> str:
        """Raises OSError where the shard is gone."""
        source, number = self._source_of(shard)
        return source.key(number, sample)

    def read(self, shard: int, sample: int) -> Sample:
        """Raises SampleError, BadImage, OSError."""
        images: tuple[bytes, ...]
        if self.pair is None:
            raw = self.read_raw(shard, sample)
            images = (raw.image,)
        else:
            raw = self.read_raw(shard, sample, images=self.pair.image_names)
            images = (raw.image, raw.second_image) if self.pair.kind == "images" else ()
        captions = tuple(fields.of(raw) for fields in self._texts)
        label = None if self.label_field is None else self.label_field.of(raw)
        return Sample(raw.key, images, captions, label, raw.note)

    @property
    def num_texts(self) -> int:
        """Of each sample."""
        return len(self._texts)

    def read_raw(self, shard: int, sample: int, *, images: Sequence[str] | None = None) -> Raw:
        """Raises SampleError, BadImage, OSError. images: see `Source.read`"""
        source, number = self._source_of(shard)
        if images is None:
            return source.read(number, sample, max_image_bytes=self.max_image_bytes)
        return source.read(number, sample, max_image_bytes=self.max_image_bytes, images=images)

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
