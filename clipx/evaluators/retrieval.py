"""Cross-modal retrieval: find the captions of an image among all captions, and the image of a
caption among all images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.distributed import embed_images, embed_texts, exchange
from clipx.evaluators.test_sets import CaptionedSet, read_captioned
from clipx.types import ImageTextEncoder, Result, Setting, UserError

RECALLS = (1, 5, 10)


@config
class Config:
    """A folder in CLIP_benchmark's webdataset layout, with captions one a line in `.txt`."""

    path: str
    split: str | None = None
    """Folder of the split; null: `test` or `val` if it has one."""
    every: str | None = None
    """Interval in training, as a duration; null: at the end only."""

    def build(self) -> Retrieval:
        return Retrieval(read_captioned(Path(self.path), self.split))


class Retrieval:
    def __init__(self, captioned: CaptionedSet) -> None:
        self.set = captioned
        if len(captioned.images) < 2:
            raise UserError(
                f"test set {captioned.images.path} has one image: there is no other to take it for"
            )

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        images = self.set.images
        image = embed_images(encoder, images.image, images.keys, setting)
        text = embed_texts(encoder, self.set.captions, setting)
        ranks = pair_ranks(image, text, self.set.owner, setting)
        return retrieval_result(ranks, images.keys)


def pair_ranks(image: Tensor, text: Tensor, owner: Tensor, setting: Setting) -> metrics.PairRanks:
    """Ranks of processes share the blocks of scores, and add their counts.

    image: (N, D); text: (M, D); owner: (M,) the image of each caption
    """
    world_size = setting.ranks.world_size
    blocks = metrics.image_blocks(len(image))[setting.ranks.rank :: world_size]
    counter = metrics.PairCounter(image, text, owner, device=setting.device)
    for block in blocks:
        setting.check_stop()  # minutes at 100,000 images
        counter.count(block)
    counts = torch.stack([counter.closer_images, counter.closer_captions])
    images, captions = torch.stack(exchange(setting, counts)).sum(0)
    return metrics.PairRanks(images, captions, owner)


def retrieval_result(ranks: metrics.PairRanks, keys: Sequence[str]) -> Result:
    """The samples are images. Captions of one image are not independent trials, so each image has
    the mean over its captions, weighted by their number.

    keys: of the N images
    """
    result = Result(keys=list(keys))
    owner = ranks.owner
    by_image = ranks.image_to_text()
    by_caption = ranks.text_to_image()

    for k in RECALLS:
        hits = by_image <= k
        result.add_rate(f"image_to_text_R@{k}", hits, interval=metrics.rate_interval(hits))
    for k in RECALLS:
        means, weights = metrics.by_group(by_caption <= k, owner)
        interval = metrics.rate_interval(means, weights)
        result.add_rate(f"text_to_image_R@{k}", means, weights, interval=interval)

    precision = ranks.image_average_precision()
    result.add_rate("image_to_text_mAP", precision, interval=metrics.rate_interval(precision))
    # A caption has one image, so its average precision is one over the rank.
    means, weights = metrics.by_group(1 / by_caption.double(), owner)
    interval = metrics.rate_interval(means, weights)
    result.add_rate("text_to_image_mAP", means, weights, interval=interval)

    median = by_image.double().quantile(0.5).item()
    interval = metrics.median_interval(by_image, torch.arange(len(keys)))
    result.add("image_to_text_median_rank", median, interval)
    median = by_caption.double().quantile(0.5).item()
    interval = metrics.median_interval(by_caption, owner)
    result.add("text_to_image_median_rank", median, interval)

    result.add("num_samples", len(keys))
    result.add("num_captions", len(owner))
    return result
