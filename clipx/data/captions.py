"""Which text of a sample is its caption, and whether the configured fields exist."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipx.data.sample import BAD_SAMPLE_ERRORS, Raw, SampleError
from clipx.data.shards import in_threads
from clipx.data.sources.webdataset import close_shards
from clipx.types import UserError

if TYPE_CHECKING:  # which imports this module
    from clipx.data.corpus import Corpus

DEFAULT_FIELD = "captions"
FALLBACK_FIELD = "txt"
MAX_CHARACTERS = 50_000
"""Of one text, a hundred times what models read. Repairing the worst text of twice as many, a row
of combining accents, takes 10 s and grows with the square."""
PROBES = 1000
"""Samples of each source that are checked for fields. A field that one sample in 200 has is missed
in 1 of 150 corpora, and would be drawn so seldom that leaving it out changes nothing."""


@dataclass(frozen=True)
class Caption:
    """The texts of a sample, in groups with the weight of their field."""

    groups: tuple[tuple[float, tuple[str, ...]], ...]

    @property
    def texts(self) -> list[str]:
        return [text for _, texts in self.groups for text in texts]

    def draw(self, number: float) -> str:
        """Draw a field by its weight, then one of its texts uniformly.

        number: uniform in [0, 1)
        """
        place = number * sum(weight for weight, _ in self.groups)
        for weight, texts in self.groups:
            if place < weight:
                return texts[int(place / weight * len(texts))]
            place -= weight
        # Rounding: weights subtracted one by one may leave a rest that their sum does not have.
        return self.groups[-1][1][-1]


@dataclass(frozen=True)
class CaptionFields:
    """weights: field name -> how often it is drawn where a sample has several fields
    fallback: field of the caption of a sample that has none of them, `txt`; "" for none
    """

    weights: Mapping[str, float]
    fallback: str = FALLBACK_FIELD

    @classmethod
    def from_setting(cls, setting: str | Mapping[str, float]) -> CaptionFields:
        """Of `data.caption_field`: a field, or several with their weights."""
        return cls({setting: 1.0} if isinstance(setting, str) else setting)

    def of(self, raw: Raw) -> Caption:
        """The caption of a sample. Raises SampleError if it has none."""
        groups = []
        for name, weight in self.weights.items():
            is_member = name in raw.text and name != "json"
            value = raw.text[name] if is_member else raw.json_fields.get(name)
            if texts := _texts(value):
                groups.append((weight, texts))
        if not groups and (texts := _texts(raw.text.get(self.fallback))):
            groups.append((1.0, texts))
        if groups:
            return Caption(tuple(groups))
        names = [*self.weights, self.fallback] if self.fallback else [*self.weights]
        wanted = " or ".join(dict.fromkeys(names))
        there = ", ".join(dict.fromkeys([*raw.text, *raw.json_fields])) or "none"
        raise SampleError("caption", f"no text in {wanted}; fields there: {there}")

    @staticmethod
    def names(raw: Raw) -> set[str]:
        """The fields of a sample that contain text. Raises SampleError."""
        values = {**raw.json_fields, **raw.text}
        values.pop("json", None)
        return {name for name, value in values.items() if _texts(value)}


def _texts(value: Any) -> tuple[str, ...]:
    """The non-empty texts of a field, which is a text, UTF-8 bytes or a list of texts."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SampleError("caption", f"not UTF-8: {error}") from error
    texts = []
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, bytes):
            raise SampleError("caption", "a text of the list is not UTF-8")
        if not isinstance(text, str):  # a number or null, as in tables with gaps
            continue
        if len(text) > MAX_CHARACTERS:
            raise SampleError(
                "caption", f"a text of {len(text):,} characters; at most {MAX_CHARACTERS:,}"
            )
        if stripped := text.strip():
            texts.append(stripped)
    return tuple(texts)


def check_caption_fields(corpus: Corpus) -> list[str]:
    """Check in a part of the corpus that the fields of data.caption_field exist.

    Returns messages about fields that may be missing. Raises UserError for a field that no sample
    has.
    """
    if corpus.fields is None:
        return []
    wanted = list(corpus.fields.weights)
    if wanted == [DEFAULT_FIELD]:
        return []  # a corpus of `.txt` captions alone needs no setting and has no such field
    present: set[str] = set()
    for source in corpus.sources.values():
        present.update(source.fields or ())  # None where samples must be read to know them
    if present.issuperset(wanted):
        return []

    def field_names(place: tuple[int, int]) -> set[str] | None:
        try:
            return CaptionFields.names(corpus.read_raw(*place))
        except BAD_SAMPLE_ERRORS:
            return None  # the run's quarantine will name it

    num_read = 0
    for names in in_threads(field_names, probes(corpus)):
        if names is not None:
            num_read += 1
            present |= names
    close_shards()  # forked workers would inherit hundreds of open files
    name = next((name for name in wanted if name not in present), None)
    if name is None or not (num_read or present):
        return []
    close = difflib.get_close_matches(name, present - set(wanted), n=1)
    guess = f" Is {close[0]!r} meant?" if close else ""
    fields = ", ".join(sorted(present)[:20]) or "none"
    if num_read:
        text = f"data.caption_field {name!r}: none of {num_read:,} samples looked at has this field"
    else:
        text = f"data.caption_field {name!r}: the tables have no such text column"
    if corpus.is_remote:  # one shard proves too little to stop a run
        return [f"{text}, all of one shard.{guess} Fields there: {fields}"]
    raise UserError(f"{text}.{guess} Correct it or leave it out; fields there: {fields}")


def probes(corpus: Corpus, *, every_source: bool = False) -> list[tuple[int, int]]:
    """(shard, sample) spread evenly over each source that must be read to know its fields. Of a
    remote one, which would download every shard, only the shard that the run begins with.

    every_source: also those whose text fields are known
    """
    first_shards = corpus.locate(np.arange(64)).shard
    places: list[tuple[int, int]] = []
    begin = 0
    for source in corpus.sources.values():
        shards = np.arange(begin, begin + len(source.sizes))
        begin += len(source.sizes)
        if source.fields is not None and not every_source:
            continue
        if source.is_remote:
            shards = first_shards[np.isin(first_shards, shards)][:1]
        sizes = corpus.sizes[shards]
        total = int(sizes.sum())
        if total == 0:
            continue
        # Evenly over the samples, not over the shards, whose sizes may differ much.
        numbers = np.unique(np.linspace(0, total - 1, min(PROBES, total)).astype(np.int64))
        ends = np.cumsum(sizes)
        slots = np.searchsorted(ends, numbers, side="right")
        samples = numbers - (ends - sizes)[slots]
        places += zip(shards[slots].tolist(), samples.tolist(), strict=True)
    return places
