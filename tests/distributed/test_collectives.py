"""Collectives on real processes, judged by what one process computes from all ranks' rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_checks import BIG, LOCAL_ROWS, fail_on_rank_1, results_of
from ranks import run_ranks

Ranks = list[dict[str, Any]]


def test_all_gather_gives_every_rank_all_rows_in_rank_order(ranks: Ranks) -> None:
    everyones = [row for rank in ranks for row in rank["gather"]["rows"]]
    for rank in ranks:
        assert rank["gather"]["out"] == everyones


def test_reduce_scatter_gives_each_rank_the_sum_over_ranks_of_its_rows(ranks: Ranks) -> None:
    results = torch.stack([results_of(rank, len(ranks)) for rank in range(len(ranks))])
    for rank, value in zip(ranks, results.sum(0).split(LOCAL_ROWS), strict=True):
        actual = torch.tensor(rank["sum"], dtype=torch.float64)
        # sums of two to four float64 numbers, in whatever order gloo takes them
        torch.testing.assert_close(actual, value, rtol=1e-14, atol=1e-12)


def test_reduce_scatter_of_logsumexp_neither_overflows_nor_vanishes(ranks: Ranks) -> None:
    results = torch.stack([results_of(rank, len(ranks)) for rank in range(len(ranks))])
    for rank, value in zip(ranks, results.logsumexp(0).split(LOCAL_ROWS), strict=True):
        actual = torch.tensor(rank["logsumexp"], dtype=torch.float64)
        torch.testing.assert_close(actual, value, rtol=1e-14, atol=1e-12)


def test_what_is_passed_right_comes_from_the_left(ranks: Ranks) -> None:
    for number, rank in enumerate(ranks):
        left = (number - 1) % len(ranks)
        assert rank["right"] == [[[10.0 + left]], [[[float(left)] * 2] * 3, [left, 7]]]


def test_collectives_use_nothing_that_torch_deprecates(ranks: Ranks) -> None:
    """torch 2.14 warned at every step of every rank."""
    assert [rank["warnings"] for rank in ranks] == [[]] * len(ranks)


def test_sum_int_is_exact_and_wraps_at_2_to_the_63(ranks: Ranks) -> None:
    size = len(ranks)
    for rank in ranks:
        assert rank["values"]["sum"] == 10 * size + sum(range(size))
        assert rank["values"]["sum_modulo"] == (BIG * size + sum(range(size))) % 2**63


def test_gather_gives_every_rank_one_value_of_each_in_rank_order(ranks: Ranks) -> None:
    expected = [{"rank": r, "text": "x" * r} for r in range(len(ranks))]
    assert [rank["values"]["gather"] for rank in ranks] == [expected] * len(ranks)


def test_average_is_over_ranks_element_by_element(ranks: Ranks) -> None:
    expected = pytest.approx([(len(ranks) - 1) / 2, 2.5])
    assert [rank["values"]["average"] for rank in ranks] == [expected] * len(ranks)


def test_only_rank_0_is_main(ranks: Ranks) -> None:
    assert [rank["values"]["is_main"] for rank in ranks] == [True] + [False] * (len(ranks) - 1)


def test_agree_raises_the_same_fault_on_all_ranks_or_on_none(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["agree"] == {
            "nobody": None,
            "last": f"of {len(ranks) - 1}",
            "all": "of 0",
        }


def test_a_rank_that_raises_fails_the_launch_with_its_reason() -> None:
    """The helper's own test: an error in a rank must never pass for success."""
    with pytest.raises(AssertionError, match=r"(?s)rank 1 raised.*the reason of rank 1"):
        run_ranks(fail_on_rank_1, 2, timeout_seconds=60)
