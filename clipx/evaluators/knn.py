"""k-nearest-neighbor classification on frozen image features: nothing is trained."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.labeled_set import LabeledConfig, read_train_and_test
from clipx.evaluators.sample_source import SourceOrHeldOut
from clipx.types import ImageTextEncoder, Result, Setting, UserError


@config
class Config(LabeledConfig):
    """A set of images with classes that has training samples too."""

    train_split: str = "train"
    """Folder of the training samples."""
    train_source: SourceOrHeldOut = None
    """Training samples beside a `source`; null: for `held_out`, the training part of the run."""
    k: int = Field(default=20, ge=1)
    """Neighbors, each with one vote."""

    def build(self) -> Knn:
        return Knn(self)


class Knn:
    def __init__(self, settings: Config) -> None:
        self.k = settings.k
        self.train, self.test = read_train_and_test(
            settings, settings.train_split, settings.train_source
        )
        if self.k > len(self.train):
            raise UserError(f"k {self.k} is more than the {len(self.train)} training samples")

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        train = self.train.features(encoder, setting)
        test = self.test.features(encoder, setting)
        num_classes = len(self.train.names)
        predicted = vote(train, self.train.label, test, self.k, num_classes)
        hits = predicted == self.test.label
        result = Result(keys=self.test.images.keys, clusters=self.test.images.clusters)
        metrics.add_rate(result, "knn-top1", hits)
        result.add("num_samples", len(hits))
        return result


def vote(train: Tensor, label: Tensor, test: Tensor, k: int, num_classes: int) -> Tensor:
    """(N,) the class of most of the k nearest training rows; of equal ones the first."""
    _, nearest = metrics.nearest_neighbors(test, train, k)
    votes = torch.zeros(len(test), num_classes, dtype=torch.int64)
    votes.scatter_add_(1, label[nearest], torch.ones_like(nearest))
    return votes.argmax(1)  # argmax takes the first of equal ones, as scikit-learn does
