"""Linear probe: logistic regression on frozen image features, on all training samples or on a few
of each class (arXiv:2103.00020, appendix A.3)."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.classifier import add_accuracy
from clipx.evaluators.distributed import on_main
from clipx.evaluators.labeled_set import LabeledSet, read_labeled
from clipx.evaluators.logistic import best_strength, fit, logits
from clipx.types import Encoder, Result, Setting, UserError


@config
class Config:
    """A set of images with classes that has training samples too."""

    path: str
    train_split: str = "train"
    split: str | None = None
    """Of the test samples; null: `test` or `val` where there is one."""
    classes: str | None = None
    """As of zero_shot."""
    shots: int | None = Field(default=None, ge=1)
    """Training samples of each class, drawn at random; null: all."""
    strength: float | None = Field(default=None, gt=0)
    """L2 regularization; null: found by the paper's sweep on a fifth of the training samples."""
    seed: int = Field(default=0, ge=0)
    every: str | None = None

    def build(self) -> LinearProbe:
        return LinearProbe(self)


class LinearProbe:
    def __init__(self, settings: Config) -> None:
        self.settings = settings
        path = Path(settings.path)
        train = read_labeled(path, settings.train_split, settings.classes)
        self.train = few_shot(train, settings.shots, settings.seed)
        self.test = read_labeled(path, settings.split, settings.classes)
        if list(train.names) != list(self.test.names):
            raise UserError(
                f"test set {path} has other classes in its training split than in its test split"
            )
        if len(self.train.label.unique()) < 2:
            raise UserError(f"training split of {path} has samples of one class only")

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        train = self.train.features(encoder, setting)
        test = self.test.features(encoder, setting)
        scores, strength = on_main(setting, self._fit_and_score, train, test, setting)
        result = Result(keys=self.test.images.keys)
        add_accuracy(result, "probe", scores, self.test)
        result.add("probe-strength", strength)
        return result

    def _fit_and_score(self, train: Tensor, test: Tensor, setting: Setting) -> tuple[Tensor, float]:
        """((N, C) scores of the test samples, strength of regularization)"""
        label = self.train.label
        num_classes = len(self.train.names)
        strength = self.settings.strength
        if strength is None:
            strength = sweep(train, label, num_classes, self.settings.seed, setting)
        weights = fit(train, label, num_classes, strength, setting.check_stop)
        return logits(test, weights), strength


def few_shot(labeled: LabeledSet, shots: int | None, seed: int) -> LabeledSet:
    """`shots` samples of each class, drawn at random. Raises UserError if a class has fewer."""
    if shots is None:
        return labeled
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for number, name in enumerate(labeled.names):
        rows = (labeled.label == number).nonzero().flatten()
        if len(rows) < shots:
            raise UserError(
                f"{labeled.images.path} has {len(rows)} training samples of {name!r}; "
                f"shots {shots} needs as many of each class"
            )
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:shots]])
    return labeled.subset(torch.cat(chosen).sort().values)


def sweep(features: Tensor, label: Tensor, num_classes: int, seed: int, setting: Setting) -> float:
    """The strength that is best on a fifth of the samples after a fit to the others. The final fit
    is then to all of them."""
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    num_held = max(1, len(label) // 5)
    held = order[:num_held]
    kept = order[num_held:]

    def accuracy(strength: float) -> float:
        weights = fit(features[kept], label[kept], num_classes, strength, setting.check_stop)
        return metrics.top_k_accuracy(logits(features[held], weights), label[held], 1)

    return best_strength(accuracy)
