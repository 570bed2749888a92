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
        found.keys.extend(self.set.images.keys)
        return found


def dedup_result(features: Tensor, group: Tensor, threshold: float) -> Result:
    """features: (N, D); group: (N,) int64"""
    similarity, nearest = (
        t[:, 0] for t in metrics.nearest_neighbors(features, features, 1, skip_self=True)
    )
    above = (similarity >= threshold).double()
    has_duplicate = torch.bincount(group)[group] > 1
    out = {"duplicate_share": above.mean().item(), "num_samples": len(group)}
    intervals = {"duplicate_share": metrics.mean_interval(above)}
    if has_duplicate.any() and not has_duplicate.all():
        out["dedup-auroc"] = metrics.auroc(similarity, has_duplicate)
        intervals["dedup-auroc"] = auroc_interval(similarity, has_duplicate)
    samples = {"duplicate_share": above}
    if has_duplicate.any():
        right = (group[nearest] == group)[has_duplicate].double()
        out["dedup-nearest_recall"] = right.mean().item()
        intervals["dedup-nearest_recall"] = metrics.mean_interval(right)
    return Result(out, intervals, samples=samples)


def auroc_interval(score: Tensor, positive: Tensor) -> tuple[float, float]:
    """Positives and negatives are drawn separately, so that every resample has both."""
    first, second = score[positive], score[~positive]
    generator = torch.Generator().manual_seed(0)
    is_positive = torch.arange(len(score)) < len(first)

    def one(_: Tensor) -> float:
        drawn = [s[torch.randint(len(s), (len(s),), generator=generator)] for s in (first, second)]
        return metrics.auroc(torch.cat(drawn), is_positive)

    return metrics.bootstrap_interval(one, 1)
