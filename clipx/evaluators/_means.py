"""Metrics that are means over samples: value, interval, and what `compare` and `fairness` need."""

from __future__ import annotations

from torch import Tensor

from clipx import metrics
from clipx.evaluators._classes import LabeledSet
from clipx.types import Result


def add_value(
    result: Result, name: str, value: float, interval: metrics.Interval | None = None
) -> None:
    result.metrics[name] = value
    if interval is not None:
        result.intervals[name] = interval


def add_mean(result: Result, name: str, values: Tensor, weights: Tensor | None = None) -> None:
    """Add the mean of values in [0, 1] with its interval.

    values: (N,); weights: (N,) of the samples in the mean, where they differ
    """
    values = values.double()
    if weights is not None and bool((weights == weights[0]).all()):
        weights = None
    interval = metrics.share_interval(values, weights)
    add_value(result, name, metrics.weighted_mean(values, weights), interval)
    result.samples[name] = values
    if weights is not None:
        result.weights[name] = weights.double()


def zero_shot_hits(features: Tensor, classes: Tensor, label: Tensor) -> Tensor:
    """(N,) float64, 1 where the class of the label is the nearest.

    features: (N, D); classes: (C, D); label: (N,) int64
    """
    ids = metrics.row_ids(classes)
    scores = metrics.similarities(features, classes, ids)
    return metrics.top_k_hits(scores, label, 1, ids).double()


def accuracy_result(
    prefix: str, scores: Tensor, labeled: LabeledSet, ids: Tensor | None = None
) -> Result:
    """Top-1 and top-5 accuracy and mean per-class recall.

    scores: (N, C); ids: (C,) as of metrics.top_k_hits
    """
    label = labeled.label
    result = Result({}, keys=list(labeled.images.keys))
    for k in (1, 5):
        add_mean(result, f"{prefix}-top{k}", metrics.top_k_hits(scores, label, k, ids))
    predicted = metrics.predictions(scores, label, ids)
    recall = metrics.mean_per_class_recall(predicted, label, len(labeled.names))
    interval = metrics.class_mean_interval(predicted == label, label)
    add_value(result, f"{prefix}-mean_per_class_recall", recall, interval)
    add_value(result, "num_samples", len(label))
    return result
