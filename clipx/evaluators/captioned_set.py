"""Test sets whose images have captions, in the first layout of test_sets.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipx.config import config
from clipx.durations import DurationText
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
    decreasing"""

    images: Images
    captions: Sequence[str]
    owner: Tensor

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
        return CaptionedSet(self.images.subset(rows), captions, owner)


@config
class CaptionedConfig:
    """Settings of evaluators on images with captions."""

    path: str
    """Folder in CLIP_benchmark's webdataset layout, with captions one a line in `.txt`."""
    split: str | None = None
    """Folder of the split; null: `test` or `val` if it has one."""
    every: DurationText | None = None
    """Interval in training, as a duration; null: at the end only."""

    def read(self) -> CaptionedSet:
        """Raises UserError."""
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
