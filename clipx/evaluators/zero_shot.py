"""Zero-shot classification: class names put into prompts are the classifier (arXiv:2103.00020,
3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators._classes import LabeledSet, classifier, read_labeled, read_templates
from clipx.evaluators._means import accuracy_result
from clipx.types import Encoder, Result, Setting, UserError


@config
class Config:
    """A set of images with classes, in CLIP_benchmark's webdataset layout or in class folders."""

    path: str
    split: str | None = None
    """Folder of the split; null: `test` or `val` where there is one."""
    classes: str | None = None
    """imagenet, imagenet-v2, -a, -r or -sketch, objectnet, or a file with one class name a line;
    null: the set's classnames.txt, else the names of its folders."""
    templates: str | None = None
    """openai (80 prompts), simple (7), or a file with one prompt a line; null: the set's own."""
    every: str | None = None
    """How often in training, as a duration; null: at the end only."""

    def build(self) -> ZeroShot:
        return ZeroShot(
            Path(self.path), split=self.split, classes=self.classes, templates=self.templates
        )


class ZeroShot:
    def __init__(
        self,
        path: Path,
        *,
        split: str | None = None,
        classes: str | None = None,
        templates: str | None = None,
    ) -> None:
        self.templates = read_templates(path, templates)
        self.set = read_labeled(path, split, classes)
        if len(self.set.names) < 2:
            raise UserError(f"test set {path} has one class: there is no other to take it for")

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        weights = classifier(encoder, self.set.names, self.templates, setting)
        ids = metrics.row_ids(weights)
        scores = metrics.similarities(self.set.features(encoder, setting), weights, ids)
        return classification_result(scores, encoder.logit_scale, self.set, ids)


def classification_result(
    scores: Tensor, logit_scale: float, labeled: LabeledSet, ids: Tensor
) -> Result:
    """scores: (N, C) cosine similarities; ids: (C,) as of metrics.top_k_hits"""
    label = labeled.label
    result = accuracy_result("zeroshot", scores, labeled, ids)
    predicted = metrics.predictions(scores, label, ids)
    result.tables["per_class"] = per_class(predicted, label, labeled.names)
    result.tables["confusion"] = confused(predicted, label, labeled.names)

    # No interval: the gaps of the bins are absolute values, so noise only adds to them. Of a
    # perfectly calibrated model the error is 0, which no resample gives.
    confidence = (logit_scale * scores).softmax(1).amax(1)
    result.metrics["zeroshot-ece"] = metrics.calibration_error(confidence, predicted == label)
    return result


def per_class(predicted: Tensor, label: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Recall of each class that occurs, worst first, with the interval of that class alone."""
    rows = []
    for number, name in enumerate(names):
        of_class = predicted[label == number]
        if len(of_class) == 0:
            continue
        hits = of_class == number
        row = {"class": name, "samples": len(of_class), "recall": metrics.weighted_mean(hits)}
        rows.append(row | metrics.ends(metrics.share_interval(hits)))
    return sorted(rows, key=lambda row: row["recall"])


def confused(predicted: Tensor, label: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Which class is taken for which other and how often, most often first."""
    counts = metrics.confusion(predicted, label, len(names)).fill_diagonal_(0)
    order = counts.flatten().argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    return [
        {
            "class": names[place // len(names)],
            "taken_for": names[place % len(names)],
            "count": int(counts.flatten()[place]),
        }
        for place in order.tolist()
    ]


def zero_shot(
    model: Encoder,
    images: object,
    class_names: Sequence[str],
    templates: Sequence[str] = ("{c}",),
) -> Tensor:
    """(N, C) probabilities of the classes for each image, at the temperature the model learned.

    images: whatever `model.encode_image` takes
    templates: prompts with {c} where the class name goes
    """
    weights = classifier(model, class_names, templates)
    return (model.logit_scale * model.encode_image(images) @ weights.T).softmax(-1)
