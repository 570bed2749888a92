"""What a model without any knowledge scores, which draws its answers at random."""

from __future__ import annotations

import math
from collections.abc import Mapping


def chance_level(metric: str, metrics: Mapping[str, float]) -> float | None:
    """The expected value of a metric under random scores; None where it has none here.

    metric: name without that of the set, such as `zeroshot-top1`, `text_to_image_R@5`
    metrics: `num_classes` of a set with classes; `num_samples`, `num_captions` and
        `num_repeated_captions` of one with captions
    """
    classes = metrics.get("num_classes")
    if classes is not None:
        name = metric.rpartition("-")[2]
        candidates = {"top1": 1, "top5": 5, "mean_per_class_recall": 1}
        return min(1.0, candidates[name] / classes) if name in candidates else None

    direction, _, name = metric.rpartition("_")
    images = metrics.get("num_samples")
    captions = metrics.get("num_captions")
    # With repeated captions, queries have different numbers of right answers.
    if metrics.get("num_repeated_captions"):
        return None
    if images is None or captions is None or captions < images:
        return None
    if direction == "image_to_text":
        # Of the mean number of captions an image: exact where all images have as many.
        return _retrieval(name, right=captions / images, total=captions)
    if direction == "text_to_image":
        return _retrieval(name, right=1, total=images)
    return None


def _retrieval(name: str, *, right: float, total: float) -> float | None:
    """right: how many of the `total` candidates belong to the query"""
    if name.startswith("R@"):
        k = int(name.removeprefix("R@"))
        if k > total - right:
            return 1.0
        # One minus the probability that a draw of k without replacement has no right one.
        return -math.expm1(_log_choices(total - right, k) - _log_choices(total, k))
    if name == "mAP":
        # The expected average precision of a random order, linear in the number of right ones.
        harmonic = sum(1 / rank for rank in range(1, round(total) + 1))
        share = (right - 1) / (total - 1) if total > 1 else 1.0
        return (share * (total - harmonic) + harmonic) / total
    return None


def _log_choices(total: float, k: int) -> float:
    """Log of the number of ways to choose k, for a total that need not be an integer."""
    return math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
