"""Anomaly detection: images far from all normal training images, by the mean distance to the
nearest of them."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators._classes import read_labeled
from clipx.evaluators._means import add_value
from clipx.evaluators._ranks import main_only
from clipx.types import Encoder, Result, Setting, UserError


@config
class Config:
    """A set of images with classes, some of which are normal, that has training samples too."""

    path: str
    normal: list[str] = Field(min_length=1)
    """The names of the normal classes; training images of others are left out."""
    train_split: str = "train"
    split: str | None = None
    """Of the test samples; null: `test` or `val` where there is one."""
    classes: str | None = None
    """As of zero_shot."""
    k: int = Field(default=5, ge=1)
    """Nearest normal images over which the distance is averaged."""
    every: str | None = None

    def build(self) -> Anomaly:
        return Anomaly(self)


class Anomaly:
    def __init__(self, settings: Config) -> None:
        path, classes = Path(settings.path), settings.classes
        train = read_labeled(path, settings.train_split, classes)
        self.test = read_labeled(path, settings.split, classes)
        for name in settings.normal:
            if name not in train.names or name not in self.test.names:
                raise UserError(
                    f"normal class {name!r} is none of {path}'s: {', '.join(train.names)}"
                )
        normal = settings.normal
        chosen = [n for n, c in enumerate(train.label.tolist()) if train.names[c] in normal]
        self.train = train.subset(torch.tensor(chosen, dtype=torch.int64))
        self.anomalous = torch.tensor(
            [self.test.names[label] not in normal for label in self.test.label.tolist()]
        )
        self.k = settings.k
        if len(chosen) < self.k:
            raise UserError(f"k {self.k} is more than the {len(chosen)} normal training samples")
        if self.anomalous.all() or not self.anomalous.any():
            raise UserError(f"test split of {path} needs images of normal and of other classes")

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        train = self.train.features(encoder, setting)
        test = self.test.features(encoder, setting)
        score = main_only(setting.ranks, lambda: anomaly_score(train, test, self.k))
        result = Result({"num_samples": len(score)})
        interval = metrics.auroc_interval(score, self.anomalous)
        add_value(result, "anomaly-auroc", metrics.auroc(score, self.anomalous), interval)
        return result


def anomaly_score(normal: Tensor, features: Tensor, k: int) -> Tensor:
    """(N,) mean cosine distance to the k nearest normal rows."""
    return 1 - metrics.nearest_neighbors(features, normal, k)[0].mean(1)
