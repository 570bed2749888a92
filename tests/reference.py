"""Slow, obvious float64 oracles."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    """-log softmax(logits)[target] of one row, written out. logits: (N,) float64"""
    shifted = logits - logits.max()
    return -(shifted[target] - torch.log(sum(torch.exp(x) for x in shifted)))


def infonce(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Figure 3 of arXiv:2103.00020, one logit at a time.

    image, text: (G, D) float64, row i of one matches row i of the other; logit_scale: () log
    """
    size = len(image)
    scale = torch.exp(logit_scale)
    rows = [torch.stack([scale * torch.dot(i, t) for t in text]) for i in image]
    columns = [torch.stack([row[j] for row in rows]) for j in range(size)]
    over_texts = sum(cross_entropy(rows[i], i) for i in range(size)) / size
    over_images = sum(cross_entropy(columns[j], j) for j in range(size)) / size
    return (over_texts + over_images) / 2


def accuracy(image: Tensor, text: Tensor) -> float:
    """Share of images whose closest caption is their own, by counting."""
    right = 0
    for row, one in enumerate(image):
        scores = [float(torch.dot(one, t)) for t in text]
        right += scores.index(max(scores)) == row
    return right / len(image)
