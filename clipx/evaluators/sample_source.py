"""Test samples from any source of data, or from the held-out part of a run's own corpus, in place
of a test set in a folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypeVar

import torch
from pydantic import WrapValidator
from torch import Tensor

from clipx.config import component
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.decode import BadImage
from clipx.data.held_out import held_out_beside
from clipx.data.labels import LabelField
from clipx.data.sample import BAD_SAMPLE_ERRORS, Raw, SampleError, Source, key_hash
from clipx.evaluators.test_sets import Images
from clipx.types import UserError

T = TypeVar("T")
HELD_OUT = "held_out"
SOURCE_FIELDS = ("source", "train_source")


@dataclass(frozen=True)
class PartOfRun:
    """The held-out part of a run's corpus, or the part that it trains on.

    opened: the sources of the part to train on; None to open them with the first use. They are
        kept, so that evaluations of a run neither open its corpus nor hash its samples again
    """

    data: DataConfig
    is_held_out: bool = True
    opened: Mapping[str, Source] | None = dataclasses.field(default=None, compare=False, repr=False)

    @cached_property
    def trained(self) -> Mapping[str, Source]:
        """The sources of the part to train on. Raises UserError."""
        return self.data.open_sources("train") if self.opened is None else self.opened

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """The sources of this part. Raises UserError if nothing is held out."""
        return held_out_beside(self.trained) if self.is_held_out else self.trained

    def rest(self) -> PartOfRun:
        """The part to train on, beside the held-out part."""
        return PartOfRun(self.data, is_held_out=False, opened=self.trained)


def _unless_held_out(value: Any, validate: Callable[[Any], Any]) -> Any:
    if value is None or value == HELD_OUT or isinstance(value, PartOfRun):
        return value
    return validate(value)


SourceOrHeldOut = Annotated[
    component("clipx.data.sources"),  # type: ignore[valid-type]
    WrapValidator(_unless_held_out),
]
"""The type of a setting: a source, the word `held_out`, or null."""


def check_source(path: str | None, split: str | None) -> None:
    """Raise UserError for settings of a folder beside a source."""
    if path is not None:
        raise UserError(f"path {path} and `source` are two test sets; leave one out")
    if split is not None:
        raise UserError(f"split {split!r} is a folder of `path`, and a `source` has none")


def with_held_out(
    evaluators: Mapping[str, Any],
    data: DataConfig | None,
    opened: Mapping[str, Source] | None = None,
) -> dict[str, Any]:
    """The evaluators with the part of the corpus in place of the word `held_out`, which all of them
    share. Raises UserError if one has the word and there is no run.

    evaluators: configs by name; data: of the run; opened: see PartOfRun
    """
    resolved = {}
    part = None if data is None else PartOfRun(data, opened=opened)
    for name, evaluator in evaluators.items():
        if part is None and uses_held_out(evaluator):
            raise UserError(
                f"evaluators.{name}: source held_out is a part of the corpus of a run, and the "
                "model is none; give a run folder, a source, or the run's config.yaml as --suite"
            )
        resolved[name] = evaluator if part is None else _resolved(evaluator, part)
    return resolved


def uses_held_out(evaluator: Any) -> bool:
    """Whether a setting of the evaluator, or of one inside of it, is the word `held_out`."""
    for name, value in _settings_of(evaluator).items():
        if name in SOURCE_FIELDS and value == HELD_OUT:
            return True
        if dataclasses.is_dataclass(value) and uses_held_out(value):
            return True
    return False


def _resolved(evaluator: Any, part: PartOfRun) -> Any:
    changes = {}
    for name, value in _settings_of(evaluator).items():
        if name in SOURCE_FIELDS and value == HELD_OUT:
            changes[name] = part
        elif dataclasses.is_dataclass(value) and uses_held_out(value):
            changes[name] = _resolved(value, part)  # such as the `of` of fairness
    return dataclasses.replace(evaluator, **changes) if changes else evaluator


def _settings_of(evaluator: Any) -> dict[str, Any]:
    return {field.name: getattr(evaluator, field.name) for field in dataclasses.fields(evaluator)}


@dataclass(frozen=True)
class SourceSamples:
    """The samples of a source, in its order.

    title: of the source, for messages; places: (shard, sample) of each of the N samples
    keys: of the samples, unique: `products.csv#0/00000017:a.jpg`
    """

    title: str
    corpus: Corpus
    places: list[tuple[int, int]]
    keys: list[str]

    def images(self, clusters: Tensor | None) -> Images:
        """Images that are missing or damaged are undecodable ones, as in a test set of shards.

        clusters: as `texts` returns them
        """

        def read(number: int) -> bytes:
            try:
                return self.corpus.read_raw(*self.places[number]).image
            except SampleError as error:
                raise BadImage(str(error)) from error

        return Images(self.title, self.keys, read, clusters)

    def texts(
        self, text_of: Callable[[Raw], T], cluster_by: str | None = None
    ) -> tuple[list[T], Tensor | None]:
        """(What `text_of` returns for each sample, (N,) int64 cluster of each sample or None
        without `cluster_by`). No image is read. Raises UserError at the first sample for which
        `text_of` raises SampleError, or which cannot be read.

        cluster_by: a field, whose equal values make a cluster; a sample without it is one by itself
        """
        found = []
        clusters = []
        alone: list[SampleError] = []
        for place, key in zip(self.places, self.keys, strict=True):
            try:
                raw = self.corpus.read_raw(*place, images=())
                found.append(text_of(raw))
            except BAD_SAMPLE_ERRORS as error:
                raise UserError(
                    f"test sample {key} of {self.title}: {error}. Correct it, or leave the sample "
                    "out (of a run's corpus, by data.skip)"
                ) from error
            if cluster_by is not None:
                try:
                    clusters.append(LabelField(cluster_by).of(raw))
                except SampleError as error:
                    alone.append(error)
                    clusters.append(key_hash(f"cluster of one: {key}"))
        if cluster_by is None:
            return found, None
        if len(alone) == len(found):
            raise UserError(
                f"cluster_by {cluster_by!r}: no sample of {self.title} has it; {alone[0]}"
            )
        return found, torch.tensor(clusters)


def cluster_field(source: Any, name: str | None) -> str | None:
    """The field that makes clusters of the samples of a source: for the held-out part of a run
    `data.held_out_by`, if no other is named.

    source: of the type SourceOrHeldOut; name: the setting `cluster_by`
    """
    if name is None and isinstance(source, PartOfRun):
        return source.data.held_out_by
    return name


def open_samples(source: Any) -> SourceSamples:
    """Open a setting of the type SourceOrHeldOut, without the samples of `data.skip`. Raises
    UserError."""
    if source == HELD_OUT:
        raise UserError("source held_out is a part of the corpus of a run, and there is no run")
    if isinstance(source, PartOfRun):
        # The order of training is of no use here, and its settings name sources of both parts.
        data = dataclasses.replace(source.data, weights={}, repeat={})
        corpus = data.corpus(source.sources, seed=0)
        title = f"the {'held-out' if source.is_held_out else 'training'} part of the corpus"
    else:
        data = DataConfig(sources={"test": source}, max_bad_fraction=0.0)
        corpus = data.open(seed=0)
        title = f"the source {corpus.name(0)}"
    places = []
    keys: list[str] = []
    seen: dict[str, int] = {}
    for number in range(int(corpus.sizes.sum())):
        shard, sample = corpus.place_of(number)
        try:
            key = corpus.key(shard, sample)
        except OSError as error:
            raise UserError(f"{corpus.name(shard)} cannot be read: {error}") from error
        if key in corpus.skip.get(shard, ()):
            continue
        # Without the folder, so that a set that is moved has the same keys.
        key = f"{corpus.name(shard).rpartition('/')[2]}/{key}"
        seen[key] = seen.get(key, 0) + 1
        keys.append(key if seen[key] == 1 else f"{key} ({seen[key]})")
        places.append((shard, sample))
    return SourceSamples(title, corpus, places, keys)
