"""Cross-modal retrieval: find the captions of an image among all captions, and the image of a
caption among all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators._means import add_mean, add_value
from clipx.evaluators._ranks import embed_images, embed_texts, together
from clipx.evaluators._sets import Images, read_shards, split_folder
from clipx.metrics.retrieval import blocks_of
from clipx.types import Encoder, Result, Setting, UserError

RECALLS = (1, 5, 10)


@config
class Config:
    """A folder in CLIP_benchmark's webdataset layout, with captions one a line in `.txt`."""

    path: str
    split: str | None = None
    """Folder of the split; null: `test` or `val` where there is one."""
    every: str | None = None
    """How often in training, as a duration; null: at the end only."""

    def build(self) -> Retrieval:
        return Retrieval(read_captioned(Path(self.path), self.split))


@dataclass(frozen=True)
class CaptionedSet:
    """captions: of each image at least one; owner: (M,) the image of each"""

    images: Images
    captions: Sequence[str]
    owner: Tensor


def read_captioned(path: Path, split: str | None = None) -> CaptionedSet:
    """Raises UserError."""
    images, texts = read_shards(split_folder(path, split), "txt")
    captions = [[line for line in text.splitlines() if line.strip()] for text in texts]
    for key, own in zip(images.keys, captions, strict=True):
        if not own:
            raise UserError(f"test set {path} has an image without a caption, {key}")
    owner = torch.tensor([row for row, own in enumerate(captions) for _ in own])
    return CaptionedSet(images, [text for own in captions for text in own], owner)


class Retrieval:
    def __init__(self, captioned: CaptionedSet) -> None:
        self.set = captioned
        if len(captioned.images) < 2:
            raise UserError(
                f"test set {captioned.images.path} has one image: there is no other to take it for"
            )

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        images = self.set.images
        image = embed_images(encoder, images.image, images.keys, setting)
        text = embed_texts(encoder, self.set.captions, setting)
        ranks = pair_ranks(image, text, self.set.owner, setting)
        return retrieval_result(ranks, images.keys)


def pair_ranks(image: Tensor, text: Tensor, owner: Tensor, setting: Setting) -> metrics.PairRanks:
    """The blocks of scores are shared out over the ranks, and their counts added.

    image: (N, D); text: (M, D); owner: (M,)
    """
    ranks = setting.ranks
    mine = blocks_of(len(image))[ranks.rank :: ranks.world_size]
    parts = together(
        ranks,
        lambda: torch.stack(metrics.count_closer(image, text, owner, mine, device=setting.device)),
    )
    images, captions = torch.stack(parts).sum(0)
    return metrics.PairRanks(images, captions, owner)


def retrieval_result(ranks: metrics.PairRanks, keys: Sequence[str]) -> Result:
    """The samples are images: captions of one image are no independent trials, so of each image
    there is the mean over its captions, weighted by their number.

    keys: of the N images
    """
    by_image, by_caption, owner = ranks.image_to_text(), ranks.text_to_image(), ranks.owner
    result = Result({}, keys=list(keys))
    for k in RECALLS:
        add_mean(result, f"image_to_text_R@{k}", by_image <= k)
    for k in RECALLS:
        add_mean(result, f"text_to_image_R@{k}", *metrics.by_group(by_caption <= k, owner))
    add_mean(result, "image_to_text_mAP", ranks.image_average_precision())
    add_mean(result, "text_to_image_mAP", *metrics.by_group(1 / by_caption.double(), owner))
    images = torch.arange(len(keys))
    for direction, rank, image in (
        ("image_to_text", by_image, images),
        ("text_to_image", by_caption, owner),
    ):
        median = rank.double().quantile(0.5).item()
        add_value(result, f"{direction}_median_rank", median, metrics.median_interval(rank, image))
    add_value(result, "num_samples", len(keys))
    add_value(result, "num_captions", len(owner))
    return result
