"""Find hard negatives: captions of other samples that a model takes for an image's own.

Exact search in blocks: N samples take two (N, D) matrices, never an (N, N) one. Candidates are the
distinct captions. A sample has as its caption the first text of its first field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipx.mining.snapshot import Snapshot

ROWS = 1024
COLUMNS = 16_384
"""Size of a block of similarities: 64 MiB of float32."""


@dataclass(frozen=True)
class Rules:
    """Which candidates of a sample are negatives, by the ranks of their similarities, nearest
    first, without the sample's own caption.

    count: at most so many, the nearest
    skip, window: ranks skip ... skip + window - 1
    relative: only those below this share of the positive's similarity (NV-Retriever,
        arXiv:2407.15831, TopK-PercPos); None: any
    margin: only those below the positive's similarity minus this (TopK-MarginPos); None: any
    """

    count: int = 4
    skip: int = 0
    window: int = 50
    relative: float | None = 0.95
    margin: float | None = None


@dataclass(frozen=True)
class Mined:
    """numbers: (N, count) int64 samples, -1 if there are fewer
    positive: (P,) similarities of the usable samples with their captions
    negative, difference: of each negative, its similarity and how far it is below the positive
    considered: number of candidates of the ranks below skip + window
    skipped: rule -> how many of these it left out, each by the first rule that does
    incomplete: number of usable samples with fewer than `count` negatives
    """

    numbers: np.ndarray
    positive: Tensor
    negative: Tensor
    difference: Tensor
    considered: int
    skipped: dict[str, int]
    incomplete: int


def mine(
    snapshot: Snapshot,
    rules: Rules,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda count: None,
) -> Mined:
    """Find the negatives of each sample."""
    total = len(snapshot.image)
    numbers = torch.full((total, rules.count), -1, dtype=torch.int64)
    positives = []
    negatives = []
    differences = []
    considered = 0
    skipped = {"skip": 0, "relative": 0, "margin": 0}
    incomplete = 0
    for start in range(0, total, ROWS):
        rows = slice(start, start + ROWS)
        usable = snapshot.usable[rows]
        image = snapshot.image[rows][usable].to(device)
        caption = snapshot.caption[rows][usable].to(device)
        own = snapshot.text[caption.cpu()].to(device)
        positive = (image * own).sum(1)
        score, column = nearest_captions(snapshot.text, image, caption, rules.skip + rules.window)
        keep = score > -torch.inf
        considered += int(keep.sum())
        skipped["skip"] += int(keep[:, : rules.skip].sum())
        score, column, keep = (x[:, rules.skip :] for x in (score, column, keep))
        for rule, limit in limits(positive, rules).items():
            is_below = score < limit[:, None]
            skipped[rule] += int((keep & ~is_below).sum())
            keep = keep & is_below
        # Each candidate that is kept has a turn, nearest first.
        turn = keep.cumsum(1)
        keep = keep & (turn <= rules.count)
        row, place = keep.nonzero(as_tuple=True)
        found = torch.full((len(image), rules.count), -1, dtype=torch.int64)
        sample = snapshot.first_sample[column[row, place].cpu()]
        found[row.cpu(), turn[row, place].cpu() - 1] = sample
        numbers[rows][usable] = found
        incomplete += int((found[:, -1] < 0).sum())
        positives.append(positive.cpu())
        negatives.append(score[row, place].cpu())
        differences.append((positive[row] - score[row, place]).cpu())
        advance(len(usable))
    return Mined(
        numbers.numpy(),
        torch.cat(positives),
        torch.cat(negatives),
        torch.cat(differences),
        considered=considered,
        skipped=skipped,
        incomplete=incomplete,
    )


def nearest_captions(
    text: Tensor, image: Tensor, caption: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """(similarity, number) of the nearest captions of each image but its own, nearest first: (B,
    count), or fewer columns if there are fewer captions. The own caption has -inf, if it is there.

    text: (C, D); image: (B, D); caption: (B,) number of each image's own
    """
    best = image.new_empty(len(image), 0)
    best_number = caption.new_empty(len(image), 0)
    rows = torch.arange(len(image), device=image.device)
    for start in range(0, len(text), COLUMNS):
        block = text[start : start + COLUMNS].to(image.device)
        score = image @ block.T
        is_here = (caption >= start) & (caption < start + len(block))
        score[rows[is_here], caption[is_here] - start] = -torch.inf
        near = score.topk(min(count, len(block)), dim=1)
        # The best of this block beside the best so far.
        both = torch.cat([best, near.values], 1)
        both_numbers = torch.cat([best_number, near.indices + start], 1)
        merged = both.topk(min(count, both.shape[1]), dim=1)
        best = merged.values
        best_number = both_numbers.gather(1, merged.indices)
    return best, best_number


def limits(positive: Tensor, rules: Rules) -> dict[str, Tensor]:
    """Rule -> (B,) similarity below which candidates count. positive: (B,)"""
    found = {}
    if rules.relative is not None:
        # A share of a negative similarity would lie above it.
        found["relative"] = positive - (1 - rules.relative) * positive.abs()
    if rules.margin is not None:
        found["margin"] = positive - rules.margin
    return found
