"""Cross-modal retrieval: find the captions of an image among all captions, and the image of a
caption among all images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.captioned_set import CaptionedConfig, CaptionedSet
from clipx.evaluators.distributed import embed_images, embed_texts, exchange
from clipx.types import ImageTextEncoder, Result, Setting, UserError

RECALLS = (1, 5, 10)


@config
class Config(CaptionedConfig):
    """A set of images with captions."""

    def build(self) -> Retrieval:
        return Retrieval(self.read())


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
    ranks = setting.ranks
    counter = metrics.PairCounter(image, text, owner, device=setting.device)
    for block in metrics.image_blocks(len(image))[ranks.rank :: ranks.world_size]:
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
        metrics.add_rate(result, f"image_to_text_R@{k}", by_image <= k)
    for k in RECALLS:
        shares = metrics.by_group(by_caption <= k, owner)
        metrics.add_rate(result, f"text_to_image_R@{k}", *shares)

    metrics.add_rate(result, "image_to_text_mAP", ranks.image_average_precision())
    # A caption has one image, so its average precision is one over the rank.
    precision = metrics.by_group(1 / by_caption.double(), owner)
    metrics.add_rate(result, "text_to_image_mAP", *precision)

    # A median is no mean of samples, so `compare` has no values to pair.
    for direction, rank, image in (
        ("image_to_text", by_image, torch.arange(len(keys))),
        ("text_to_image", by_caption, owner),
    ):
        median = rank.double().quantile(0.5).item()
        interval = metrics.median_interval(rank, image)
        result.add(f"{direction}_median_rank", median, interval)

    result.add("num_samples", len(keys))
    result.add("num_captions", len(owner))
    return result
