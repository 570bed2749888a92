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
        self.set = settings.read()
        self.threshold = settings.threshold
        if len(self.set) < 2:
            raise UserError(f"test set {settings.path} has one image: there is no other to compare")

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        features = self.set.features(encoder, setting)
        keys = [self.set.images.keys[row] for row in first_of_groups(self.set.label)]
        return on_main(setting, dedup_result, features, self.set.label, self.threshold, keys)


def dedup_result(features: Tensor, group: Tensor, threshold: float, keys: list[str]) -> Result:
    """The samples are groups of duplicates: the images of one group are found together or missed
    together, so they are not independent trials.

    features: (N, D); group: (N,) int64; keys: of the G groups, in the order of first_of_groups
    """
    result = Result(keys=keys)
    similarity, nearest_is_right = nearest_others(features, group)
    shares, sizes = metrics.by_group(similarity >= threshold, group)
    interval = metrics.rate_interval(shares, sizes)
    result.add_rate("duplicate_share", shares, sizes, interval=interval)

    has_duplicate = (torch.bincount(group) > 1)[group]
    if has_duplicate.any() and not has_duplicate.all():
        area = metrics.auroc(similarity, has_duplicate)
        interval = metrics.auroc_interval(similarity, has_duplicate, group)
        result.add("dedup-auroc", area, interval)
    if has_duplicate.any():
        right = nearest_is_right[has_duplicate].double()
        shares, sizes = metrics.by_group(right, group[has_duplicate])
        interval = metrics.rate_interval(shares, sizes)
        result.add("dedup-nearest_recall", right.mean().item(), interval)
    result.add("num_samples", len(group))
    return result


def first_of_groups(group: Tensor) -> list[int]:
    """The first row of each group, in the order of metrics.by_group."""
    row_of: dict[int, int] = {}
    for row, number in enumerate(group.tolist()):
        row_of.setdefault(number, row)
    return [row_of[number] for number in sorted(row_of)]


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
