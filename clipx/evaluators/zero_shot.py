"""Zero-shot classification: prompts with class names are the classifier (arXiv:2103.00020, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.classifier import add_accuracy, classifier, read_templates
from clipx.evaluators.labeled_set import LabeledConfig, LabeledSet
from clipx.types import ImageTextEncoder, Result, Setting, UserError


@config
class Config(LabeledConfig):
    """A set of images with classes."""

    templates: str | None = None
    """openai (80 prompts), simple (7), or a file with one prompt a line; null: the set's own."""

    def build(self) -> ZeroShot:
        return ZeroShot(self, self.templates)


class ZeroShot:
    def __init__(self, settings: LabeledConfig, templates: str | None) -> None:
        """templates: as in Config"""
        self.templates = read_templates(Path(settings.path), templates)
        self.set = settings.read()
        if len(self.set.names) < 2:
            raise UserError(
                f"test set {settings.path} has one class: there is no other to take it for"
            )

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        weights = classifier(encoder, self.set.names, self.templates, setting)
        features = self.set.features(encoder, setting)
        ids = metrics.row_ids(weights)  # ImageNet's list has two pairs of equal names
        scores = metrics.similarities(features, weights, ids)
        return classification_result(scores, encoder.logit_scale, self.set, ids)


def classification_result(
    scores: Tensor, logit_scale: float, labeled: LabeledSet, ids: Tensor
) -> Result:
    """scores: (N, C) cosine similarities; ids: (C,) as of metrics.top_k_hits"""
    result = Result(keys=labeled.images.keys)
    add_accuracy(result, "zeroshot", scores, labeled, ids)

    # No interval: the gaps of the bins are absolute values, so noise only adds to them. The error
    # of a perfectly calibrated model is 0, which no resample gives.
    predicted = metrics.predictions(scores, labeled.label, ids)
    confidence = (logit_scale * scores).softmax(1).amax(1)
    correct = predicted == labeled.label
    result.add("zeroshot-ece", metrics.calibration_error(confidence, correct))

    names = labeled.names
    result.tables["per_class"] = per_class(predicted, labeled.label, names)

    # The pairs of classes of which one is taken for the other, most frequent first.
    confusion = metrics.confusion(predicted, labeled.label, len(names))
    counts = confusion.fill_diagonal_(0).flatten()
    confusions = []
    for place in counts.argsort(descending=True, stable=True).tolist():
        count = int(counts[place])
        if count == 0:
            break
        right, wrong = divmod(place, len(names))
        confusions.append({"class": names[right], "taken_for": names[wrong], "count": count})
    result.tables["confusion"] = confusions
    return result


def per_class(predicted: Tensor, label: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Recall of each class that occurs, worst first, with the interval of that class alone."""
    rows = []
    for number, name in enumerate(names):
        hits = predicted[label == number] == number
        if len(hits) == 0:
            continue
        row = {"class": name, "samples": len(hits)}
        rows.append(row | metrics.rate_row("recall", hits))
    return sorted(rows, key=lambda row: row["recall"])


def zero_shot(
    model: ImageTextEncoder,
    images: object,
    class_names: Sequence[str],
    templates: Sequence[str] = ("{c}",),
) -> Tensor:
    """(N, C) probabilities of the classes for each image, at the learned temperature.

    images: as for `model.encode_image`
    templates: prompts with {c} in place of the class name
    """
    weights = classifier(model, class_names, templates)
    logits = model.logit_scale * model.encode_image(images) @ weights.T
    return logits.softmax(-1)
