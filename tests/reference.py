"""Slow, obvious float64 oracles."""

from __future__ import annotations

import torch
from torch import Tensor

Past = tuple[Tensor, Tensor, Tensor | None]


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


def allowed(ids: Tensor | None, other_ids: Tensor | None, size: int, others: int) -> Tensor:
    """(size, others) bool: whether a candidate counts. Candidate i of the first `size` is row i's
    positive, which always does; another does unless it has one of the row's K ids."""
    out = torch.ones(size, others, dtype=torch.bool)
    if ids is None or other_ids is None:
        return out
    for i in range(size):
        for j in range(others):
            out[i, j] = i == j or not any(a == b for a, b in zip(ids[i], other_ids[j], strict=True))
    return out


def infonce_rows(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    past: Past | None = None,
) -> Tensor:
    """(G,) what each pair adds to InfoNCE: mean of its cross-entropies among all texts and among
    all images, past ones too, of which those count that `allowed` says. The target is
    (1 - smoothing) on the positive and the rest evenly over all that count."""
    sides = []
    for number, (rows, others) in enumerate(((image, text), (text, image))):
        other_ids = ids
        if past is not None:
            others = torch.cat([others, past[1 - number]])
            other_ids = None if ids is None else torch.cat([ids, past[2]])
        logits = logit_scale.exp() * rows @ others.T
        counts = allowed(ids, other_ids, *logits.shape)
        log_p = torch.log_softmax(logits.masked_fill(~counts, -torch.inf), dim=1)
        target = label_smoothing * counts.double() / counts.sum(1, keepdim=True)
        target[:, : len(rows)] += (1 - label_smoothing) * torch.eye(len(rows)).double()
        sides.append(-(target * log_p.masked_fill(~counts, 0)).sum(1))
    return (sides[0] + sides[1]) / 2


def sigmoid_rows(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    ids: Tensor | None = None,
    past: Past | None = None,
) -> Tensor:
    """(G,) what each image adds to equation 1 of arXiv:2303.15343 (and each text, among past
    images): -log sigmoid(z) of its positive, -log sigmoid(-z) of all else that counts."""
    size = len(image)
    blocks = [(image, text, ids, 2 * torch.eye(size, dtype=torch.float64) - 1)]
    if past is not None:
        for rows, others in ((image, past[1]), (text, past[0])):
            blocks.append((rows, others, past[2], -torch.ones(size, len(others)).double()))
    total = torch.zeros(size, dtype=torch.float64)
    for number, (rows, others, other_ids, sign) in enumerate(blocks):
        logits = logit_scale.exp() * rows @ others.T + logit_bias
        counts = allowed(ids, other_ids, *logits.shape)
        if number > 0 and ids is not None:  # no past row is a positive
            counts = (ids[:, None] != other_ids[None]).all(-1)
        total = total + (torch.nn.functional.softplus(-sign * logits, threshold=1e6) * counts).sum(
            1
        )
    return total


def accuracy(image: Tensor, text: Tensor) -> float:
    """Share of images whose closest caption is their own, by counting."""
    right = 0
    for row, one in enumerate(image):
        scores = [float(torch.dot(one, t)) for t in text]
        right += scores.index(max(scores)) == row
    return right / len(image)
