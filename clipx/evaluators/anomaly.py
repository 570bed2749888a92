"""Anomaly detection: images far from all normal training images, by the mean distance to the
nearest of them."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.distributed import on_main
from clipx.evaluators.labeled_set import LabeledConfig
from clipx.types import ImageTextEncoder, Result, Setting, UserError


@config
class Config(LabeledConfig):
    """A set of images with classes, some of which are normal, that has training samples too."""

    normal: list[str] = Field(min_length=1, kw_only=True)
    """The names of the normal classes; training images of others are left out."""
    train_split: str = "train"
    """Folder of the training samples."""
    k: int = Field(default=5, ge=1)
    """Nearest normal images over which the distance is averaged."""

    def build(self) -> Anomaly:
        return Anomaly(self)


class Anomaly:
    def __init__(self, settings: Config) -> None:
        path = settings.path
        train = settings.read(settings.train_split)
        self.test = settings.read()
        # Class numbers by split, because without a list of classes each split numbers its own.
        train_numbers = []
        test_numbers = []
        for name in settings.normal:
            if name not in train.names or name not in self.test.names:
                raise UserError(
                    f"normal class {name!r} is none of {path}'s: {', '.join(train.names)}"
                )
            train_numbers.append(train.names.index(name))
            test_numbers.append(self.test.names.index(name))
        is_normal = torch.isin(train.label, torch.tensor(train_numbers))
        self.train = train.subset(is_normal.nonzero().flatten().tolist())
        self.anomalous = ~torch.isin(self.test.label, torch.tensor(test_numbers))
        self.k = settings.k
        if len(self.train) < self.k:
            raise UserError(
                f"k {self.k} is more than the {len(self.train)} normal training samples"
            )
        if self.anomalous.all() or not self.anomalous.any():
            raise UserError(f"test split of {path} needs images of normal and of other classes")

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        train = self.train.features(encoder, setting)
        test = self.test.features(encoder, setting)
        # On rank 0: ranks of one machine share its cores, and would all compute the same.
        score = on_main(setting, anomaly_score, train, test, self.k)
        result = Result()  # no keys: an area is no mean of samples that `compare` could pair
        area = metrics.auroc(score, self.anomalous)
        result.add("anomaly-auroc", area, metrics.auroc_interval(score, self.anomalous))
        result.add("num_samples", len(score))
        return result


def anomaly_score(normal: Tensor, features: Tensor, k: int) -> Tensor:
    """(N,) mean cosine distance to the k nearest normal rows."""
    similarity, _ = metrics.nearest_neighbors(features, normal, k)
    return 1 - similarity.mean(1)  # rows have unit norm
