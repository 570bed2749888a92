"""Test sets whose images have captions: in the first layout of test_sets.py, or from a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.config import config
from clipx.data.captions import DEFAULT_FIELD, CaptionFields
from clipx.durations import DurationText
from clipx.evaluators.sample_source import (
    PartOfRun,
    SourceOrHeldOut,
    check_source,
    cluster_field,
    open_samples,
)
from clipx.evaluators.test_sets import (
    Images,
    evenly_spaced,
    read_shards,
    split_folder,
    text_lines,
)
from clipx.types import UserError


@dataclass(frozen=True)
class CaptionedSet:
    """captions: M, at least one of each image; owner: (M,) int64 image of each caption, not
    decreasing
    text_ids: (M,) int64, equal where captions are; None if a caption is right with its image alone
    """

    images: Images
    captions: Sequence[str]
    owner: Tensor
    text_ids: Tensor | None = None

    @property
    def num_distinct(self) -> int:
        """Captions that differ, as far as that counts."""
        return len(self.captions if self.text_ids is None else self.text_ids.unique())

    def right_captions(self, image: int) -> Tensor:
        """(M,) bool, the captions that are right answers for an image."""
        is_own = self.owner == image
        if self.text_ids is None:
            return is_own
        return torch.isin(self.text_ids, self.text_ids[is_own])

    def right_images(self, caption: int) -> Tensor:
        """(N,) bool, the images that are right answers for a caption."""
        right = self.owner[caption]
        if self.text_ids is not None:
            right = self.owner[self.text_ids == self.text_ids[caption]]
        return torch.isin(torch.arange(len(self.images)), right)

    def first_captions(self) -> Tensor:
        """(N,) int64, the number of the first caption of each image."""
        num_captions = torch.bincount(self.owner)
        return num_captions.cumsum(0) - num_captions

    def evenly_spaced(self, limit: int) -> CaptionedSet:
        """At most `limit` images with their captions, from the first on."""
        rows = evenly_spaced(len(self.images), limit)
        is_kept = torch.isin(self.owner, torch.tensor(rows))
        kept = is_kept.nonzero().flatten().tolist()
        captions = [self.captions[number] for number in kept]
        # The new number of an image is its place among the rows, which increase.
        owner = torch.searchsorted(torch.tensor(rows), self.owner[is_kept])
        text_ids = None if self.text_ids is None else self.text_ids[is_kept]
        return CaptionedSet(self.images.subset(rows), captions, owner, text_ids)


@config
class CaptionedConfig:
    """Settings of evaluators on images with captions."""

    path: str | None = None
    """Folder in CLIP_benchmark's webdataset layout, with captions one a line in `.txt`."""
    split: str | None = None
    """Folder of the split; null: `test` or `val` if it has one."""
    every: DurationText | None = None
    """Interval in training, as a duration; null: at the end only."""
    source: SourceOrHeldOut = None
    """Instead of `path`: any source that `data.sources` takes, or `held_out`, that part of the
    run's own corpus. Equal captions of several images are then right with each of them."""
    caption_field: str | None = None
    """Of a source, as `data.caption_field`; null: that of the run for `held_out`, else `captions`.
    All captions of a sample are taken."""
    cluster_by: str | None = None
    """Of a source: a field, such as product_id; samples with the same value are a cluster.
    Intervals and `clipx compare` then take clusters as independent, not samples (arXiv:2411.00640).
    null: `data.held_out_by` for `held_out`, else none."""

    def read(self) -> CaptionedSet:
        """Raises UserError."""
        if self.source is not None:
            check_source(self.path, self.split)
            clusters = cluster_field(self.source, self.cluster_by)
            return read_captions(self.source, self.caption_field, clusters)
        if self.path is None:
            raise UserError("the test set needs a `path`, or a `source`")
        if self.caption_field is not None:
            raise UserError("caption_field belongs to a `source`; captions of `path` are in .txt")
        if self.cluster_by is not None:
            raise UserError("cluster_by belongs to a `source`; a `path` has no fields")
        images, texts = read_shards(split_folder(Path(self.path), self.split), "txt")
        captions: list[str] = []
        owner: list[int] = []
        for number, text in enumerate(texts):
            own = text_lines(text)
            if not own:
                raise UserError(
                    f"test set {self.path} has an image without a caption, {images.keys[number]}"
                )
            captions += own
            owner += [number] * len(own)
        return CaptionedSet(images, captions, torch.tensor(owner))


def caption_fields(source: Any, name: str | None) -> CaptionFields:
    """Where the captions of a source are.

    source: of the type SourceOrHeldOut; name: a field, or None for that of the run
    """
    if name is None and isinstance(source, PartOfRun):
        return CaptionFields.from_setting(source.data.caption_field)
    return CaptionFields.from_setting(name or DEFAULT_FIELD)


def read_captions(
    source: Any, caption_field: str | None, cluster_by: str | None = None
) -> CaptionedSet:
    """The images and captions of a source. Raises UserError at the first sample without a caption.

    source: of the type SourceOrHeldOut; caption_field: see CaptionedConfig
    cluster_by: see SourceSamples.texts
    """
    samples = open_samples(source)
    fields = caption_fields(source, caption_field)
    captions: list[str] = []
    owner: list[int] = []
    numbers: dict[str, int] = {}  # of texts; case and spaces make no other caption
    text_ids: list[int] = []
    texts_of_image, clusters = samples.texts(lambda raw: fields.of(raw).texts, cluster_by)
    for image, texts in enumerate(texts_of_image):
        own: dict[int, str] = {}
        for text in texts:
            number = numbers.setdefault(" ".join(text.split()).casefold(), len(numbers))
            own.setdefault(number, text)
        captions += own.values()
        owner += [image] * len(own)
        text_ids += own
    images = samples.images(clusters)
    return CaptionedSet(images, captions, torch.tensor(owner), torch.tensor(text_ids))
