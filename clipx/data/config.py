"""Where pairs come from and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from clipx.config import component, config
from clipx.data import decode
from clipx.data.captions import CaptionFields
from clipx.data.order import Mixture, Order
from clipx.data.sample import Source
from clipx.data.sources import webdataset
from clipx.data.stream import Corpus, read_skip_list
from clipx.data.transforms import Augmentation
from clipx.types import UserError

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Hue = Annotated[float, Field(ge=0, le=0.5)]


@config
class DataConfig:
    """One source (`shards`) or a mixture of several (`sources`)."""

    shards: str | list[str] | None = None
    """WebDataset tars: folder, glob, `{000..127}` range, list, URL, or several joined by `::`.
    Short for a source of the name `webdataset` with default settings."""
    sources: dict[str, component("clipx.data.sources")] = Field(default_factory=dict)  # type: ignore[valid-type]
    """Instead of `shards`: sources of pairs by a name of yours."""
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Share of each source in the samples seen, in any unit; each source then has epochs of its
    own. Without weights, an epoch has every sample of every source."""
    repeat: dict[str, PositiveInt] = Field(default_factory=dict)
    """How often an epoch has the samples of a source (1 where it is not named)."""
    workers: int = Field(default=1, ge=0, le=1024)
    """Processes per rank that read and decode; 0 reads in the training process. Never changes the
    batches."""
    streams: int = Field(default=64, ge=1, le=2**20)
    """Places of the corpus that every batch draws from. Part of the order: choose a multiple of the
    ranks."""
    window: int = Field(default=20_000, ge=1, le=2**31)
    """Samples that are shuffled together within a stream."""
    caption_field: str | dict[str, PositiveFloat] = "captions"
    """Field of the `.json` member (or column of a table) with one caption or a list, of which
    each visit draws one; or several fields and how often each is drawn. `txt` is the `.txt` member,
    which is also read where a sample has no such field."""
    text_multiple: int = Field(default=1, ge=1, le=2**16)
    """Captions are padded to the longest of their batch, rounded up to a multiple of this: more
    than 1 where compiled graphs are made for each length."""
    crop_scale: tuple[Share, Share] = (0.9, 1.0)
    """Share of the image's area that a random crop keeps."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Width over height of a random crop."""
    flip: Probability = 0.0
    """Probability of a horizontal flip."""
    color_jitter: tuple[Strength, Strength, Strength, Hue] = (0.0, 0.0, 0.0, 0.0)
    """How strongly brightness, contrast, saturation and hue change, where they do."""
    color_jitter_prob: Probability = 0.0
    gray_scale_prob: Probability = 0.0
    """Probability that a picture loses its colors."""
    max_image_pixels: int = Field(default=decode.MAX_PIXELS, ge=1)
    """Larger images are quarantined without being decoded."""
    max_image_bytes: int = Field(default=decode.MAX_BYTES, ge=1)
    """Of the encoded picture; larger ones are quarantined too."""
    max_bad_fraction: Probability = 0.1
    """Training stops when a larger share of samples is bad (looked at from 500 samples on), or of
    shards."""
    skip: str | None = None
    """Samples that are known to be bad, as `clipx data verify --out` or a run's quarantine.jsonl
    lists them: replaced unread, by the same samples as if they had been read."""
    accept_changed_corpus: bool = False
    """Go on with a run whose corpus has changed since, at the same position of the new order."""

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            flip=self.flip,
            color_jitter=self.color_jitter,
            color_jitter_prob=self.color_jitter_prob,
            gray_scale_prob=self.gray_scale_prob,
        )

    def decode(self, image: bytes) -> Tensor:
        """(3, H, W) uint8. Raises BadImage."""
        return decode.decode(
            image, max_pixels=self.max_image_pixels, max_bytes=self.max_image_bytes
        )

    def open(self, *, seed: int) -> Corpus:
        """Raises UserError when no shard, or none with samples, is found."""
        return self.corpus(self.open_sources(), seed=seed)

    def open_sources(self) -> dict[str, Source]:
        """Tables of what there is. Raises UserError."""
        if (self.shards is None) == (not self.sources):
            raise UserError("data needs either `shards` or `sources`, not both")
        configs = self.sources or {"shards": webdataset.Config(self.shards)}  # type: ignore[arg-type]
        unknown = {*self.weights, *self.repeat} - {*configs}
        if unknown:
            raise UserError(f"data.weights and data.repeat name no source: {sorted(unknown)}")
        if self.weights and (self.repeat or {*self.weights} != {*configs}):
            raise UserError(
                "data.weights needs one weight for each source, and no data.repeat beside it; "
                f"sources: {sorted(configs)}, weights: {sorted(self.weights)}"
            )
        sources = {name: configs[name].build() for name in sorted(configs)}
        for name, source in sources.items():
            self._check_shards(f"data.sources.{name}" if self.sources else "data.shards", source)
        return sources

    def _check_shards(self, where: str, source: Source) -> None:
        """A source with nothing in it, or with too many bad shards."""
        unreadable = [fault for fault in source.faults if fault.is_whole_shard]
        if len(unreadable) > self.max_bad_fraction * len(source.sizes):
            lines = "\n".join(f"  {f.shard}: {f.message}" for f in unreadable[:10])
            raise UserError(
                f"{where}: {len(unreadable)} of {len(source.sizes)} shards cannot be read, more "
                f"than data.max_bad_fraction={self.max_bad_fraction}:\n{lines}"
            )
        if not source.sizes.sum():
            raise UserError(f"{where}: all {len(source.sizes)} shards are empty")

    def corpus(self, sources: Mapping[str, Source], *, seed: int) -> Corpus:
        """The order over sources that are open. Raises UserError."""
        first = np.cumsum([0, *(len(source.sizes) for source in sources.values())])
        shards = [np.arange(a, b) for a, b in pairwise(first)]
        settings = {"seed": seed, "streams": self.streams, "window": self.window}
        order: Order | Mixture
        if self.weights:
            orders = [Order(source.sizes, **settings) for source in sources.values()]
            order = Mixture(orders, [self.weights[name] for name in sources], seed=seed)
            if not order.quota.all():
                rare = min(self.weights, key=self.weights.__getitem__)
                raise UserError(
                    f"data.weights.{rare} is below {1 / Mixture.BLOCK:.2%} of the mixture; "
                    "raise it, or leave the source out"
                )
        else:
            times = [self.repeat.get(name, 1) for name in sources]
            shards = [np.tile(own, n) for own, n in zip(shards, times, strict=True)]
            sizes = np.concatenate([source.sizes for source in sources.values()])
            order = Order(sizes[np.concatenate(shards)], **settings)
        fields = self.caption_field
        fields = {fields: 1.0} if isinstance(fields, str) else fields
        corpus = Corpus(
            sources,
            order,
            np.concatenate(shards),
            CaptionFields(fields),
            max_image_bytes=self.max_image_bytes,
        )
        if self.skip is not None:
            corpus.skip, corpus.skip_unknown = read_skip_list(Path(self.skip), corpus)
        return corpus
