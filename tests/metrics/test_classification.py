"""Metrics against answers worked by hand, and against the definition on random scores."""

from __future__ import annotations

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


def test_confusion_counts_rows_of_the_class_and_columns_of_the_guess() -> None:
    found = metrics.confusion(SCORES.argmax(1), LABEL, 3)  # guesses 0, 2, 1, 0
    assert found.tolist() == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_calibration_error_by_hand() -> None:
    confidence = torch.tensor([0.15, 0.19, 0.55, 0.95, 1.0, 0.0])
    correct = torch.tensor([0, 1, 1, 1, 1, 0]).bool()
    # Bins of a fifth, closed above: {0.15, 0.19, 0.0}, {0.55}, {0.95, 1.0}
    gaps = abs(0.34 - 1), abs(0.55 - 1), abs(1.95 - 2)
    found = metrics.calibration_error(confidence, correct, bins=5)
    assert found == pytest.approx(sum(gaps) / 6, abs=1e-7)  # float32 confidences
    assert metrics.calibration_error(torch.full((10,), 0.7), torch.arange(10) < 7) < 1e-7


def test_a_tie_counts_against_the_model_and_predictions_agree() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.1, 0.1], [0.3, 0.3, 0.3]])
    label = torch.tensor([1, 0, 2])
    assert metrics.top_k_hits(scores, label, 1).tolist() == [False, True, False]
    assert metrics.top_k_hits(scores, label, 2).tolist() == [True, True, False]
    predicted = metrics.predictions(scores, label)
    assert (predicted == label).tolist() == [False, True, False]
    assert predicted.tolist()[0] == 0
    twins = torch.tensor([0, 0, 2])  # the first two are one class
    assert metrics.top_k_hits(scores, torch.tensor([0, 0, 0]), 1, twins).tolist() == [
        True,
        True,
        False,
    ]
    assert metrics.top_k_hits(scores, torch.tensor([1, 1, 1]), 1, twins).tolist() == [False] * 3


def test_equal_columns_have_equal_scores_bit_by_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(n, 77, generator=generator) for n in (301, 13))
    scores = metrics.similarities(rows, columns[torch.arange(1001) % 13])
    assert torch.equal(scores, scores[:, torch.arange(1001) % 13])
    ids = metrics.row_ids(torch.tensor([[0.0, 1], [1, 1], [-0.0, 1], [1, 1]]))
    assert ids.tolist() == [0, 1, 0, 1]


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
