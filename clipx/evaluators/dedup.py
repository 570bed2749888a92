"""Near-duplicates by embeddings: how similar each image is to its nearest other, and how well that
tells images with a duplicate from those without where labels say which have one."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators._classes import read_labeled
from clipx.evaluators._means import add_mean, add_value
from clipx.evaluators._ranks import main_only
from clipx.types import Encoder, Result, Setting, UserError


@config
class Config:
    """A set of images whose classes are groups of duplicates; an image alone in its class has
    none."""

    path: str
    split: str | None = None
    """Folder of the split; null: `test` or `val` where there is one."""
    classes: str | None = None
    """As of zero_shot."""
    threshold: float = Field(default=0.95, gt=-1, lt=1)
    """Cosine similarity from which on two images count as duplicates."""
    every: str | None = None

    def build(self) -> Dedup:
        return Dedup(self)


class Dedup:
    def __init__(self, settings: Config) -> None:
        self.set = read_labeled(Path(settings.path), settings.split, settings.classes)
        self.threshold = settings.threshold
        if len(self.set) < 2:
            raise UserError(f"test set {settings.path} has one image: there is no other to compare")

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        features = self.set.features(encoder, setting)
        found = main_only(
            setting.ranks,
            lambda: dedup_result(features, self.set.label, self.threshold),
        )
        first = first_of_groups(self.set.label)
        found.keys.extend(self.set.images.keys[row] for row in first.tolist())
        return found


def dedup_result(features: Tensor, group: Tensor, threshold: float) -> Result:
    """The samples are groups of duplicates, by the key of their first image: those of one group are
    found together or missed together, so they are no independent trials.

    features: (N, D); group: (N,) int64
    """
    similarity, has_right_neighbor = nearest_others(features, group)
    above = (similarity >= threshold).double()
    has_duplicate = (torch.bincount(group) > 1)[group]
    result = Result({"num_samples": len(group)})
    add_mean(result, "duplicate_share", *metrics.by_group(above, group))
    if has_duplicate.any() and not has_duplicate.all():
        interval = metrics.auroc_interval(similarity, has_duplicate, group)
        add_value(result, "dedup-auroc", metrics.auroc(similarity, has_duplicate), interval)
    if has_duplicate.any():
        right = has_right_neighbor[has_duplicate].double()
        shares = metrics.share_interval(*metrics.by_group(right, group[has_duplicate]))
        add_value(result, "dedup-nearest_recall", right.mean().item(), shares)
    return result


def first_of_groups(group: Tensor) -> Tensor:
    """(G,) rows, in the order of `metrics.by_group`."""
    _, member = group.unique(return_inverse=True)
    rows = torch.arange(len(group))
    first = torch.full((int(member.max()) + 1,), len(group))
    return first.scatter_reduce(0, member, rows, "amin")


def nearest_others(features: Tensor, group: Tensor, *, block: int = 1024) -> tuple[Tensor, Tensor]:
    """((N,) similarity to the nearest other image, (N,) bool: whether one of the own group is
    nearer than all of other groups). Ties count against the model.

    features: (N, D); group: (N,) int64
    """
    ids = metrics.row_ids(features)
    nearest, right = [], []
    for start in range(0, len(features), block):
        rows = torch.arange(start, min(start + block, len(features)))
        scores = metrics.similarities(features[rows], features, ids)
        scores[rows - start, rows] = -torch.inf
        same = group[rows, None] == group[None, :]
        of_own_group = scores.masked_fill(~same, -torch.inf).amax(1)
        of_others = scores.masked_fill(same, -torch.inf).amax(1)
        nearest.append(torch.maximum(of_own_group, of_others))
        right.append(of_own_group > of_others)
    return torch.cat(nearest), torch.cat(right)
