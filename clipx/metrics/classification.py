"""How well class scores tell classes apart."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k_hits(scores: Tensor, label: Tensor, k: int, ids: Tensor | None = None) -> Tensor:
    """(N,) bool: whether fewer than k other classes score as high as the label, or higher. Ties
    count against the model.

    Classes that are equal by definition are the exception, since no model can tell them apart:
    OpenAI's list for ImageNet has `missile` and `sunglasses` twice. Of those, the first is
    preferred, as everybody's argmax does.

    scores: (N, C) float; label: (N,) int64
    ids: (C,) int64, the number of the first class that equals each; None: all differ
    """
    rivals = scores >= scores.gather(1, label[:, None])
    if ids is not None:
        number = torch.arange(len(ids))
        equal = ids[None, :] == ids[label][:, None]
        rivals &= ~(equal & (number[None, :] > label[:, None]))
    rivals.scatter_(1, label[:, None], False)
    return rivals.sum(1) < k


def predictions(scores: Tensor, label: Tensor, ids: Tensor | None = None) -> Tensor:
    """(N,) int64 classes with the highest scores: another than the label where that is no hit of
    `top_k_hits` with k = 1, so that tables agree with accuracy on ties."""
    others = scores.scatter(1, label[:, None], -torch.inf).argmax(1)
    return torch.where(top_k_hits(scores, label, 1, ids), label, others)


def top_k_accuracy(scores: Tensor, label: Tensor, k: int) -> float:
    """Fraction of rows whose label is among the k highest scores."""
    return top_k_hits(scores, label, k).double().mean().item()


def mean_per_class_recall(predicted: Tensor, label: Tensor, num_classes: int) -> float:
    """Recall averaged over the classes that occur. predicted, label: (N,) int64"""
    total = torch.bincount(label, minlength=num_classes)
    right = torch.bincount(label[predicted == label], minlength=num_classes)
    seen = total > 0
    return (right[seen].double() / total[seen]).mean().item()


def confusion(predicted: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64: how often a sample of the row's class was taken for the column's."""
    counts = torch.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error (arXiv:1706.04599): the gap between confidence and accuracy,
    averaged over bins of equal width by their share of the samples.

    confidence: (N,) float in [0, 1]; correct: (N,) bool
    """
    # Bin b holds the confidences in (b / bins, (b + 1) / bins].
    where = (confidence.double() * bins).ceil().long().sub_(1).clamp_(0, bins - 1)
    gap = torch.bincount(where, confidence.double() - correct.double(), minlength=bins)
    return gap.abs().sum().item() / len(confidence)
