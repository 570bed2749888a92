"""Each loss as plain PyTorch writes it: with the (B, N) matrix of this rank's rows and the rows of
all ranks, and autograd. benchmarks/loss.py measures its memory beside clipx's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTHS = {512: 1.0, 128: 1.0, 32: 1.0}
MARGIN = 1.0
BETA, TAU_PLUS = 0.5, 0.01
GAMMA, EPSILON = 0.9, 1e-14
TEACHER_SCALE = 50.0


@dataclass(frozen=True)
class Rows:
    """image, text: (B, D) of this rank; images, texts: (N, D) of all ranks, this one's first
    ids, all_ids: (B,) and (N,), concepts; scale, bias: ()
    teacher_image, teacher_text, teacher_images, teacher_texts: as the first four, no gradient
    """

    image: Tensor
    text: Tensor
    images: Tensor
    texts: Tensor
    ids: Tensor
    all_ids: Tensor
    scale: Tensor
    bias: Tensor
    teacher_image: Tensor
    teacher_text: Tensor
    teacher_images: Tensor
    teacher_texts: Tensor

    def directions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, candidates) of images against texts, and of texts against images."""
        yield self.image, self.texts
        yield self.text, self.images

    def own(self) -> Tensor:
        """(B, N) bool, where a row meets its own column"""
        mask = torch.zeros(
            len(self.image), len(self.images), dtype=torch.bool, device=self.image.device
        )
        mask.fill_diagonal_(True)
        return mask


def infonce(rows: Rows) -> Tensor:
    target = torch.arange(len(rows.image), device=rows.image.device)
    total = torch.zeros_like(rows.scale)
    for queries, candidates in rows.directions():
        total = total + F.cross_entropy(rows.scale * queries @ candidates.T, target) / 2
    return total


def sigmoid(rows: Rows) -> Tensor:
    logits = rows.scale * rows.image @ rows.texts.T + rows.bias
    signs = 2.0 * rows.own() - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def nt_xent(rows: Rows) -> Tensor:
    target = torch.arange(len(rows.image), device=rows.image.device)
    total = torch.zeros_like(rows.scale)
    for queries, candidates in rows.directions():
        same_kind = rows.images if queries is rows.image else rows.texts
        within = (queries @ same_kind.T).masked_fill(rows.own(), -torch.inf)
        logits = rows.scale * torch.cat([queries @ candidates.T, within], 1)
        total = total + F.cross_entropy(logits, target) / 2
    return total


def triplet_hardest(rows: Rows) -> Tensor:
    total = torch.zeros_like(rows.scale)
    for queries, candidates in rows.directions():
        cosines = queries @ candidates.T
        hardest = cosines.masked_fill(rows.own(), -torch.inf).amax(1)
        total = total + torch.relu(MARGIN + hardest - cosines.diagonal()).mean() / 2
    return total


def triplet_all(rows: Rows) -> Tensor:
    total = torch.zeros_like(rows.scale)
    for queries, candidates in rows.directions():
        cosines = queries @ candidates.T
        violations = torch.relu(MARGIN + cosines - cosines.diagonal()[:, None])
        violations = violations.masked_fill(rows.own(), 0)
        total = total + violations.sum() / (violations > 0).sum().clamp(min=1) / 2
    return total


def margin_all(rows: Rows) -> Tensor:
    squared = (2 - 2 * rows.image @ rows.texts.T).clamp(min=1e-12)
    is_positive = (rows.ids[:, None] == rows.all_ids) | rows.own()
    negative = torch.relu(MARGIN - squared.sqrt()).square()
    of_positive = squared.masked_fill(~is_positive, 0).sum() / is_positive.sum()
    return of_positive + negative.masked_fill(is_positive, 0).sum() / (~is_positive).sum()


def hard_negative(rows: Rows) -> Tensor:
    total = torch.zeros_like(rows.scale)
    for queries, candidates in rows.directions():
        logits = rows.scale * queries @ candidates.T
        positive = logits.diagonal()
        count = logits.shape[1] - 1
        negatives = logits.masked_fill(rows.own(), -torch.inf)
        weighted = ((1 + BETA) * negatives).logsumexp(1)
        mean_weight = (BETA * negatives).logsumexp(1) - math.log(count)
        estimate = (weighted - mean_weight - positive).exp() - TAU_PLUS * count
        least = count * (-rows.scale - positive).exp()
        estimate = torch.maximum(estimate / (1 - TAU_PLUS), least)
        total = total + estimate.log1p().mean() / 2
    return total


def multi_positive(rows: Rows) -> Tensor:
    is_positive = (rows.ids[:, None] == rows.all_ids) | rows.own()
    total = torch.zeros_like(rows.scale)
    for queries, candidates in rows.directions():
        log_prob = (rows.scale * queries @ candidates.T).log_softmax(1)
        total = total - _mean_where(is_positive, log_prob).mean() / 2
    logits = (rows.scale * rows.image @ rows.images.T).masked_fill(rows.own(), -torch.inf)
    others = is_positive & ~rows.own()
    return total - _mean_where(others, logits.log_softmax(1)).mean()


def _mean_where(mask: Tensor, values: Tensor) -> Tensor:
    """(B,) mean of a row's values where the mask is True, 0 where it never is"""
    return values.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)


def matryoshka(rows: Rows) -> Tensor:
    target = torch.arange(len(rows.image), device=rows.image.device)
    total = torch.zeros_like(rows.scale)
    for width, weight in WIDTHS.items():
        for queries, candidates in rows.directions():
            cut = F.normalize(queries[:, :width], dim=1)
            logits = rows.scale * cut @ F.normalize(candidates[:, :width], dim=1).T
            total = total + weight * F.cross_entropy(logits, target) / 2
    return total


def similarity_kl(rows: Rows) -> Tensor:
    total = torch.zeros_like(rows.scale)
    teachers = (
        (rows.teacher_image, rows.teacher_texts),
        (rows.teacher_text, rows.teacher_images),
    )
    for (queries, candidates), (teacher, of_teacher) in zip(
        rows.directions(), teachers, strict=True
    ):
        log_student = (rows.scale * queries @ candidates.T).log_softmax(1)
        log_teacher = (TEACHER_SCALE * teacher @ of_teacher.T).log_softmax(1)
        divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="sum")
        total = total + divergence / len(queries) / 2
    return total


def global_normalizer(rows: Rows) -> Tensor:
    """In the first step, in which the averages are the estimates."""
    total = torch.zeros_like(rows.scale)
    for queries, candidates in rows.directions():
        logits = rows.scale * queries @ candidates.T
        count = logits.shape[1] - 1
        differences = logits - logits.diagonal()[:, None]
        ratios = differences.exp().masked_fill(rows.own(), 0)
        estimates = ratios.sum(1) / count
        quotient = estimates / (EPSILON + estimates.detach())
        value = (EPSILON + estimates.detach()).log() + math.log(count)
        total = total + (quotient - quotient.detach() + value).mean() / 2
    return total


DENSE: dict[str, Callable[[Rows], Tensor]] = {
    "infonce": infonce,
    "sigmoid": sigmoid,
    "nt_xent": nt_xent,
    "triplet hardest": triplet_hardest,
    "triplet all": triplet_all,
    "margin all": margin_all,
    "hard_negative": hard_negative,
    "multi_positive": multi_positive,
    "matryoshka": matryoshka,
    "similarity_kl": similarity_kl,
    "global_normalizer": global_normalizer,
}
