"""Hold out a share of the samples of any source: `data.held_out`.

A hash decides for each sample by itself, so that its side never depends on the samples around it:
it stays where it is when the corpus grows, is shuffled or gets further sources, and a larger share
only adds to the samples held out before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

import numpy as np

from clipx.data.decode import MAX_BYTES
from clipx.data.labels import LabelField
from clipx.data.sample import BAD_SAMPLE_ERRORS, BadSample, Raw, SampleError, Source, key_hash
from clipx.data.sample_values import read_values, store_of
from clipx.data.sources.webdataset import close_shards
from clipx.progress import progress
from clipx.types import UserError

Part = Literal["train", "held_out", "all"]


class PartOfSource:
    """Some of the samples of a source, as a source: see `clipx.data.sample.Source`. Its shards are
    those of the whole source, with fewer samples each, so that order and resume need no change."""

    def __init__(self, whole: Source, is_chosen: np.ndarray) -> None:
        """is_chosen: (N,) bool of the samples of all shards"""
        self.whole = whole
        self.fields = whole.fields
        self.is_remote = whole.is_remote
        self.faults: Sequence[BadSample] = whole.faults
        ends = np.cumsum(whole.sizes)
        starts = ends - whole.sizes
        shard_of = np.repeat(np.arange(len(whole.sizes)), whole.sizes)
        chosen = np.flatnonzero(is_chosen)
        self.sizes = np.bincount(shard_of[chosen], minlength=len(whole.sizes)).astype(np.int64)
        self._starts = np.cumsum(self.sizes) - self.sizes
        # Number of each chosen sample within its shard of the whole source.
        self._numbers = (chosen - starts[shard_of[chosen]]).astype(np.int32)

    @property
    def digests(self) -> Sequence[str]:
        """Of the shards and of the choice."""
        digests = []
        for shard, digest in enumerate(self.whole.digests):
            layout, colon, content = digest.partition(":")
            start = self._starts[shard]
            numbers = self._numbers[start : start + self.sizes[shard]]
            chosen = hashlib.sha1(layout.encode() + numbers.astype("<i4").tobytes()).hexdigest()
            digests.append(chosen + colon + content)
        return digests

    def name(self, shard: int) -> str:
        return self.whole.name(shard)

    def key(self, shard: int, sample: int) -> str:
        return self.whole.key(shard, self._number(shard, sample))

    def identity(self, shard: int, sample: int) -> str:
        return self.whole.identity(shard, self._number(shard, sample))

    def read(
        self,
        shard: int,
        sample: int,
        *,
        max_image_bytes: int = MAX_BYTES,
        images: Sequence[str] | None = None,
    ) -> Raw:
        number = self._number(shard, sample)
        return self.whole.read(shard, number, max_image_bytes=max_image_bytes, images=images)

    def prefetch(self, shards: Sequence[int]) -> None:
        self.whole.prefetch(shards)

    def rest(self) -> PartOfSource:
        """The samples of the whole source that are not in this part."""
        is_chosen = np.zeros(int(self.whole.sizes.sum()), dtype=np.bool_)
        starts = np.cumsum(self.whole.sizes) - self.whole.sizes
        is_chosen[np.repeat(starts, self.sizes) + self._numbers] = True
        return PartOfSource(self.whole, ~is_chosen)

    def _number(self, shard: int, sample: int) -> int:
        """The number of a sample in its shard of the whole source."""
        assert 0 <= sample < self.sizes[shard]
        return int(self._numbers[self._starts[shard] + sample])


def parts_of(
    sources: Mapping[str, Source], part: Part, *, share: float, field: str | None
) -> dict[str, Source]:
    """One part of each source. Raises UserError where nothing is held out or nothing is left.

    share: of the samples to be held out; field: see `is_held_out`
    """
    if field is not None and not share:
        raise UserError(
            f"data.held_out_by {field!r} without data.held_out holds nothing out; set "
            "data.held_out, such as 0.1"
        )
    if part == "all":
        return dict(sources)
    trained = dict(sources)
    if share:
        for name, source in sources.items():
            held_out = is_held_out(source, share=share, field=field, name=name)
            trained[name] = PartOfSource(source, ~held_out)
    return held_out_beside(trained) if part == "held_out" else trained


def held_out_beside(trained: Mapping[str, Source]) -> dict[str, Source]:
    """The held-out part of each source, without hashing its samples again. Raises UserError if
    there is none.

    trained: the parts to train on
    """
    parts: dict[str, Source] = {}
    for name, source in trained.items():
        if not isinstance(source, PartOfSource):
            raise UserError("the corpus has no held-out part: set data.held_out, such as 0.1")
        parts[name] = source.rest()
    return parts


def held_out_message(sources: Mapping[str, Source]) -> list[str]:
    """A line on the sizes of the parts, for parts to train on; none where nothing is held out."""
    total = 0
    num_kept = 0
    for source in sources.values():
        if isinstance(source, PartOfSource):
            total += int(source.whole.sizes.sum())
            num_kept += int(source.sizes.sum())
    if not total:
        return []
    num_held_out = total - num_kept
    return [f"{num_held_out:,} of {total:,} samples ({num_held_out / total:.1%}) are held out"]


def is_held_out(source: Source, *, share: float, field: str | None, name: str) -> np.ndarray:
    """(N,) bool of the samples of all shards: whether a hash of the sample's identity, or of its
    value of a field, is below the share. Raises UserError.

    field: samples with the same value are on the same side; a sample without it has its identity
        instead, and one that cannot be read is not held out
    name: of the source, for messages
    """
    total = int(source.sizes.sum())
    if field is None:
        hashes = _identity_hashes(source)
    else:
        hashes = _field_hashes(source, field, name)
    # Hashes have 63 bits. The comparison is exact enough in float64: it errs by 2^-53.
    held_out = hashes < share * 2.0**63
    num_held_out = int(held_out.sum())
    if 0 < num_held_out < total:
        return held_out
    num_values = len(np.unique(hashes))
    what = f"{total:,} samples" if field is None else f"{num_values:,} values of {field!r}"
    if num_held_out:
        raise UserError(
            f"data.held_out {share}: all {what} of {name} are held out, so that nothing is left to "
            "train on; lower it, or give more samples"
        )
    raise UserError(
        f"data.held_out {share}: none of the {what} of {name} is held out, as each is with this "
        "probability; raise it, or give more samples"
    )


def _hash(text: str) -> int:
    """63 bits, other ones than those of `key_hash`, by which users may have split before."""
    return key_hash(f"held out: {text}")


def _identity_hashes(source: Source) -> np.ndarray:
    """(N,) int64"""
    hashes = np.full(int(source.sizes.sum()), np.iinfo(np.int64).max)
    row = 0
    for shard, size in enumerate(source.sizes.tolist()):
        for sample in range(size):
            with suppress(OSError):  # of a shard that is gone; training replaces its samples
                hashes[row] = _hash(source.identity(shard, sample))
            row += 1
    close_shards()  # forked workers would inherit hundreds of open files
    return hashes


def _field_hashes(source: Source, field: str, name: str) -> np.ndarray:
    """(N,) int64. Raises UserError if no sample has the field."""
    total = int(source.sizes.sum())
    ends = np.cumsum(source.sizes)
    label_field = LabelField(field)
    seen: set[str] = set()  # fields of samples that lack this one
    found: list[int] = []  # numbers of samples that have it

    def hash_of_number(number: int) -> int | None:
        shard = int(np.searchsorted(ends, number, side="right"))
        sample = number - int(ends[shard] - source.sizes[shard])
        try:
            raw = source.read(shard, sample, images=())
            try:
                value = label_field.of(raw)
            except SampleError as error:
                if error.stage != "label":
                    raise
                seen.update(raw.text, raw.json_fields)
                return _hash(source.identity(shard, sample))
        except BAD_SAMPLE_ERRORS:
            return None  # not to be used on either side
        found.append(number)
        return _hash(str(value))

    store = store_of("held_out", [*source.digests], field)
    hashes = store.load(total)
    if hashes is None:
        with progress(f"reading {field} of {name}", total) as advance:
            hashes, is_known = read_values(total, hash_of_number, advance)
        if not found:
            fields = ", ".join(sorted(seen - {"json"})) or "none"
            raise UserError(
                f"data.held_out_by {field!r}: no sample of {name} has it; fields there: {fields}"
            )
        hashes[~is_known] = np.iinfo(np.int64).max
        # A store that fails today may not fail tomorrow, so only a complete reading is kept.
        if is_known.all():
            store.save(hashes)
    return hashes
