"""How well the scores of classes separate them."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k_hits(scores: Tensor, label: Tensor, k: int, ids: Tensor | None = None) -> Tensor:
    """(N,) bool: whether fewer than k other classes score at least as high as the label. Ties count
    against the model.

    Classes that are equal by definition are the exception, since no model can separate them:
    OpenAI's list for ImageNet has `missile` and `sunglasses` twice. Of those, the first is
    preferred, as argmax does.

    scores: (N, C) float; label: (N,) int64
    ids: (C,) int64, number of the first class that equals each; None if all differ
    """
    column = label[:, None]
    own_score = scores.gather(1, column)
    rivals = scores >= own_score
    if ids is not None:
        is_equal = ids == ids[column]
        is_later = torch.arange(len(ids)) > column
        rivals &= ~(is_equal & is_later)
    rivals.scatter_(1, column, False)  # a label is no rival of itself
    return rivals.sum(1) < k


def predictions(scores: Tensor, label: Tensor, ids: Tensor | None = None) -> Tensor:
    """(N,) int64 classes with the highest scores. The label is predicted where top_k_hits with
    k = 1 has a hit, and nowhere else, so that tables agree with accuracy on ties."""
    without_label = scores.scatter(1, label[:, None], -torch.inf)
    best_other = without_label.argmax(1)
    is_hit = top_k_hits(scores, label, 1, ids)
    return torch.where(is_hit, label, best_other)


def top_k_accuracy(scores: Tensor, label: Tensor, k: int) -> float:
    """Fraction of rows whose label is among the k highest scores."""
    return top_k_hits(scores, label, k).double().mean().item()


def mean_per_class_recall(predicted: Tensor, label: Tensor, num_classes: int) -> float:
    """Recall averaged over the classes that occur. predicted, label: (N,) int64"""
    total = torch.bincount(label, minlength=num_classes)
    right = torch.bincount(label[predicted == label], minlength=num_classes)
    occurs = total > 0
    recall = right[occurs].double() / total[occurs]
    return recall.mean().item()


def confusion(predicted: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 number of samples by class (row) and predicted class (column)."""
    cell = label * num_classes + predicted
    counts = torch.bincount(cell, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error (arXiv:1706.04599): the gap between confidence and accuracy,
    averaged over bins of equal width by their share of the samples.

    confidence: (N,) float in [0, 1]; correct: (N,) bool
    """
    confidence = confidence.double()
    # Bin b holds the confidences in (b / bins, (b + 1) / bins], and the first one 0 as well.
    number = (confidence * bins).ceil().long() - 1
    number = number.clamp(0, bins - 1)
    # A bin's gap times its number of samples is the sum of its samples' gaps.
    gap = torch.bincount(number, confidence - correct.double(), minlength=bins)
    return gap.abs().sum().item() / len(confidence)
