"""Metrics against answers worked by hand, and against the definition on random scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipx import metrics

SCORES = torch.tensor(
    [
        [0.9, 0.5, 0.1],  # best: 0, 1, 2
        [0.2, 0.3, 0.8],  # best: 2, 1, 0
        [0.4, 0.6, 0.5],  # best: 1, 2, 0
        [0.7, 0.1, 0.3],  # best: 0, 2, 1
    ]
)
LABEL = torch.tensor([0, 1, 0, 0])


@pytest.mark.parametrize(("k", "expected"), [(1, 2 / 4), (2, 3 / 4), (3, 1.0), (5, 1.0)])
def test_top_k_accuracy_by_hand(k: int, expected: float) -> None:
    assert metrics.top_k_accuracy(SCORES, LABEL, k) == expected


def test_mean_per_class_recall_counts_the_classes_that_occur() -> None:
    # class 0: 2 of 3 right; class 1: 0 of 1; class 2 does not occur
    value = metrics.mean_per_class_recall(SCORES.argmax(1), LABEL, 3)
    assert value == pytest.approx((2 / 3 + 0) / 2)


MATCH = torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(("k", "expected"), [(1, 2 / 4), (2, 3 / 4), (3, 1.0), (10, 1.0)])
def test_recall_at_k_needs_one_match_among_several(k: int, expected: float) -> None:
    assert metrics.recall_at_k(SCORES, MATCH, k) == expected  # ranks 3, 1, 2, 1


def test_median_rank_by_hand() -> None:
    assert metrics.median_rank(SCORES, MATCH) == 1.5  # of 3, 1, 2, 1
    assert metrics.median_rank(SCORES[:3], MATCH[:3]) == 2


def test_ties_count_against_the_rank() -> None:
    tied = torch.zeros(1, 5)
    match = torch.tensor([[False, True, False, True, False]])
    assert metrics.median_rank(tied, match) == 4  # behind the three that do not match


def by_definition(scores: Tensor, match: Tensor, k: int) -> float:
    hits = 0
    for row, wanted in zip(scores.tolist(), match.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda i: -row[i])[:k]
        hits += any(wanted[i] for i in best)
    return hits / len(scores)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_random_scores_agree_with_the_definition(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    scores = torch.rand(40, 17, generator=generator)
    label = torch.randint(17, (40,), generator=generator)
    match = torch.nn.functional.one_hot(label, 17).bool()
    expected = pytest.approx(by_definition(scores, match, k))  # float32 mean
    assert metrics.top_k_accuracy(scores, label, k) == expected
    assert metrics.recall_at_k(scores, match, k) == expected


@pytest.mark.parametrize(
    ("rate", "count", "low", "high"),
    [  # Brown, Cai and DasGupta (2001) and the closed form at the ends: z^2 / (n + z^2)
        (0.5, 100, 0.4038, 0.5962),
        (0.0, 10, 0.0, 1.96**2 / (10 + 1.96**2)),
        (1.0, 10, 10 / (10 + 1.96**2), 1.0),
    ],
)
def test_wilson_interval_is_that_of_the_tables(
    rate: float, count: int, low: float, high: float
) -> None:
    assert metrics.wilson_interval(rate, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_covers_95_of_100_experiments() -> None:
    # 4000 experiments of 50 trials: the share covered has a standard error of 0.35 %; the
    # interval's true coverage moves by 2 % around 95 % as the rate does.
    generator = torch.Generator().manual_seed(0)
    rate = 0.3
    wins = torch.bernoulli(torch.full((4000, 50), rate), generator=generator).sum(1)
    intervals = [metrics.wilson_interval(w / 50, 50) for w in wins.tolist()]
    covered = sum(low <= rate <= high for low, high in intervals) / len(intervals)
    assert math.isclose(covered, 0.95, abs_tol=0.03)
