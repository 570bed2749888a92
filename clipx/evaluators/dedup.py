"""Near-duplicates by embeddings: the similarity of each image to its nearest other, and how well it
separates images with a duplicate from those without, if labels name the duplicates."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.distributed import on_main
from clipx.evaluators.labeled_set import LabeledConfig
from clipx.types import ImageTextEncoder, Result, Setting, UserError

BLOCK = 1024  # rows of the matrix of similarities that are held at a time


@config
class Config(LabeledConfig):
    """A set of images whose classes are groups of duplicates; an image alone in its class has
    none."""

    threshold: float = Field(default=0.95, gt=-1, lt=1)
    """Cosine similarity from which on two images count as duplicates."""

    def build(self) -> Dedup:
        return Dedup(self)


class Dedup:
    def __init__(self, settings: Config) -> None:
        if settings.cluster_by is not None:
            raise UserError("dedup: groups of duplicates are the clusters; leave cluster_by out")
        self.set = settings.read()
        self.threshold = settings.threshold
        if len(self.set) < 2:
            raise UserError(
                f"test set {self.set.images.path} has one image: there is no other to compare"
            )

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        features = self.set.features(encoder, setting)
        # A group has the key of its first image. Groups go by number, as in metrics.by_group.
        key_of: dict[int, str] = {}
        for group, key in zip(self.set.label.tolist(), self.set.images.keys, strict=True):
            key_of.setdefault(group, key)
        keys = [key_of[group] for group in sorted(key_of)]
        return on_main(setting, dedup_result, features, self.set.label, self.threshold, keys)


def dedup_result(features: Tensor, group: Tensor, threshold: float, keys: list[str]) -> Result:
    """The samples are groups of duplicates: the images of one group are found together or missed
    together, so they are not independent trials.

    features: (N, D); group: (N,) int64; keys: of the G groups, by increasing number
    """
    result = Result(keys=keys)
    similarity, nearest_is_right = nearest_others(features, group)
    is_duplicate = similarity >= threshold
    metrics.add_rate(result, "duplicate_share", *metrics.by_group(is_duplicate, group))

    has_duplicate = (torch.bincount(group) > 1)[group]
    if has_duplicate.any() and not has_duplicate.all():
        area = metrics.auroc(similarity, has_duplicate)
        interval = metrics.auroc_interval(similarity, has_duplicate, group)
        result.add("dedup-auroc", area, interval)
    if has_duplicate.any():
        # Only of the groups with duplicates, so `compare` cannot pair it with all keys.
        right = nearest_is_right[has_duplicate].double()
        shares, sizes = metrics.by_group(right, group[has_duplicate])
        interval = metrics.rate_interval(shares, sizes)
        result.add("dedup-nearest_recall", right.mean().item(), interval)
    result.add("num_samples", len(group))
    return result


def nearest_others(features: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """((N,) similarity to the nearest other image, (N,) bool: whether an image of the same group is
    nearer than all of other groups). Ties count against the model.

    features: (N, D); group: (N,) int64
    """
    ids = metrics.row_ids(features)  # equal images get equal scores
    nearest = []
    right = []
    for start in range(0, len(features), BLOCK):
        rows = torch.arange(start, min(start + BLOCK, len(features)))
        scores = metrics.similarities(features[rows], features, ids)
        scores[rows - start, rows] = -torch.inf  # an image is no duplicate of itself
        same = group[rows, None] == group[None, :]
        nearest_same = scores.masked_fill(~same, -torch.inf).amax(1)
        nearest_different = scores.masked_fill(same, -torch.inf).amax(1)
        nearest.append(torch.maximum(nearest_same, nearest_different))
        # Strictly nearer, so that a model with equal embeddings for all images finds nothing.
        right.append(nearest_same > nearest_different)
    return torch.cat(nearest), torch.cat(right)
