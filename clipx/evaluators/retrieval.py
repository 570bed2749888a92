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
        ranks = pair_ranks(image, text, self.set.owner, setting, self.set.text_ids)
        return retrieval_result(ranks, images.keys, images.clusters)


def pair_ranks(
    image: Tensor, text: Tensor, owner: Tensor, setting: Setting, text_ids: Tensor | None = None
) -> metrics.PairRanks:
    """Ranks of processes share the blocks of scores, and add their counts.

    image: (N, D); text: (M, D); owner: (M,) the image of each caption; text_ids: as of CaptionedSet
    """
    ranks = setting.ranks
    counter = metrics.PairCounter(image, text, owner, device=setting.device, text_ids=text_ids)
    for block in metrics.image_blocks(len(image))[ranks.rank :: ranks.world_size]:
        setting.check_stop()  # minutes at 100,000 images
        counter.count(block)
    counts = torch.stack([counter.closer_images, counter.closer_captions])
    images, captions = torch.stack(exchange(setting, counts)).sum(0)
    return metrics.PairRanks(images, captions, owner, text_ids)


def retrieval_result(
    ranks: metrics.PairRanks, keys: Sequence[str], clusters: Tensor | None = None
) -> Result:
    """The samples are images. Captions of one image are not independent trials, so each image has
    the mean over its captions, weighted by their number. Equal captions are one trial: they count
    for the first of their images, with the weight of all of them.

    keys: of the N images; clusters: (N,) as in Result
    """
    result = Result(keys=list(keys), clusters=clusters)
    owner = ranks.owner
    units = ranks.caption_units()
    by_image = ranks.image_to_text()
    by_caption = ranks.text_to_image()

    for k in RECALLS:
        metrics.add_rate(result, f"image_to_text_R@{k}", by_image <= k)
    for k in RECALLS:
        shares = by_unit(by_caption <= k, units, len(keys))
        metrics.add_rate(result, f"text_to_image_R@{k}", *shares)

    metrics.add_rate(result, "image_to_text_mAP", ranks.image_average_precision())
    precision = by_unit(ranks.caption_average_precision(), units, len(keys))
    metrics.add_rate(result, "text_to_image_mAP", *precision)

    # A median is no mean of samples, so `compare` has no values to pair.
    cluster_of_image = torch.arange(len(keys)) if clusters is None else clusters
    for direction, rank, cluster in (
        ("image_to_text", by_image, cluster_of_image),
        ("text_to_image", by_caption, cluster_of_image[units]),
    ):
        median = rank.double().quantile(0.5).item()
        interval = metrics.median_interval(rank, cluster.unique(return_inverse=True)[1])
        result.add(f"{direction}_median_rank", median, interval)

    result.add("num_samples", len(keys))
    num_captions = len(owner) if ranks.text_ids is None else len(ranks.text_ids.unique())
    result.add("num_captions", num_captions)
    if num_captions < len(owner):
        result.add("num_repeated_captions", len(owner) - num_captions)
    return result


def by_unit(values: Tensor, units: Tensor, num_images: int) -> tuple[Tensor, Tensor | None]:
    """((N,) mean over the captions of each image, (N,) their number or None if all are equal). An
    image that no caption stands for has the weight 0.

    values: (M,); units: (M,) int64 image of each caption
    """
    means, sizes = metrics.by_group(values, units)
    present = units.unique()
    if len(present) == num_images:
        return means, sizes
    full_means = torch.zeros(num_images, dtype=torch.float64)
    full_sizes = torch.zeros(num_images, dtype=torch.int64)
    full_means[present] = means
    full_sizes[present] = torch.bincount(units)[present]
    return full_means, full_sizes
