"""Zero-shot classification: prompts with class names are the classifier (arXiv:2103.00020, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.embed import Encoder
from clipx.evaluators.classifier import Templates, add_accuracy, classifier, read_templates
from clipx.evaluators.labeled_set import LabeledConfig, LabeledSet
from clipx.model_inputs import Pictures
from clipx.types import ImageTextEncoder, Result, Setting, UserError


@config
class Config(LabeledConfig):
    """A set of images with classes."""

    templates: Templates = None
    """openai (80 prompts), simple (7), a file with one prompt a line, or a list of prompts; null:
    the set's own, of a source the class name alone."""

    def build(self) -> ZeroShot:
        return ZeroShot(self, self.templates)


class ZeroShot:
    def __init__(self, settings: LabeledConfig, templates: Templates) -> None:
        """templates: as in Config"""
        has_folder = settings.path is not None and settings.source is None
        path = Path(str(settings.path)) if has_folder else None
        self.templates = read_templates(path, templates)
        self.set = settings.read()
        if len(self.set.names) < 2:
            raise UserError(
                f"test set {self.set.images.path} has one class: there is no other to take it for"
            )

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        weights = classifier(encoder, self.set.names, self.templates, setting)
        features = self.set.features(encoder, setting)
        ids = metrics.row_ids(weights)  # ImageNet's list has two pairs of equal names
        scores = metrics.similarities(features, weights, ids)
        return classification_result(scores, encoder.scale, self.set, ids)


def classification_result(scores: Tensor, scale: float, labeled: LabeledSet, ids: Tensor) -> Result:
    """scores: (N, C) cosine similarities; ids: (C,) as of metrics.top_k_hits"""
    clusters = labeled.images.clusters
    result = Result(keys=labeled.images.keys, clusters=clusters)
    add_accuracy(result, "zeroshot", scores, labeled, ids)

    # No interval: the gaps of the bins are absolute values, so noise only adds to them. The error
    # of a perfectly calibrated model is 0, which no resample gives.
    predicted = metrics.predictions(scores, labeled.label, ids)
    confidence = (scale * scores).softmax(1).amax(1)
    correct = predicted == labeled.label
    result.add("zeroshot-ece", metrics.calibration_error(confidence, correct))

    names = labeled.names
    result.tables["per_class"] = per_class(predicted, labeled.label, names, clusters)

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


def per_class(
    predicted: Tensor, label: Tensor, names: Sequence[str], clusters: Tensor | None = None
) -> list[dict[str, Any]]:
    """Recall of each class that occurs, worst first, with the interval of that class alone.

    predicted, label: (N,) int64; clusters: (N,) as in Result
    """
    rows = []
    for number, name in enumerate(names):
        is_of_class = label == number
        hits = predicted[is_of_class] == number
        if len(hits) == 0:
            continue
        row = {"class": name, "samples": len(hits)}
        clusters_of_class = None if clusters is None else clusters[is_of_class]
        rows.append(row | metrics.rate_row("recall", hits, clusters=clusters_of_class))
    return sorted(rows, key=lambda row: row["recall"])


def zero_shot(
    model: Encoder,
    images: Pictures | Tensor | np.ndarray,
    class_names: Sequence[str],
    templates: Sequence[str] = ("{c}",),
) -> Tensor:
    """(N, C) float32 probabilities of the classes for each image, at the temperature of the model.

    images: as for `Encoder.encode_image`, or embeddings, (N, D) of floats; the probabilities of a
        row of NaN are NaN
    class_names: C of them, at least two: probabilities are relative to the other classes
    templates: prompts with {c} in place of the class name; a class is the mean of its prompts

    Raises UserError for bad arguments, and EmbeddingError as `Encoder.encode_image`.
    """
    names = _texts("class_names", class_names, "['cat', 'dog']")
    prompts = _texts("templates", templates, "['a photo of a {c}']")
    if len(names) < 2:
        raise UserError(
            f"class_names {names} has {len(names)} of at least 2 names: the probability of a "
            "class is relative to the others; for one text use model.similarity"
        )
    if not prompts:
        raise UserError("templates is empty; give at least one, for example '{c}'")
    weights = classifier(model, names, prompts)
    logits = model.scale * model.similarity(images, weights)
    return logits.softmax(-1)


def _texts(argument: str, texts: Sequence[str], example: str) -> list[str]:
    """A list of the texts. Raises UserError for a single text, whose letters would be taken."""
    if isinstance(texts, str):
        raise UserError(
            f"{argument} is the text {texts!r}, and must be a list of texts, for example {example}"
        )
    found = list(texts)
    for text in found:
        if not isinstance(text, str):
            raise UserError(f"{argument} must be texts, and one is {text!r}")
    return found
