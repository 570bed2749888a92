"""Evaluation shared among processes: the same numbers on all ranks and for any number of them, and
no rank waits for one that failed or has to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_checks import evaluated, failing, overdue, signaled
from ranks import RankGroup
from tiny_runs import write_test_sets

from clipx.types import Alone

COUNT = 131  # prime: no number of ranks divides it, and the last batch is short


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with classes, and one with one to three captions an image."""
    folder = tmp_path_factory.mktemp("sets")
    write_test_sets(folder, COUNT, "a {c} bar")
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, Any]:
    """Results of one process, with one thread as the ranks have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = evaluated(Alone(), folder)["results"]
    finally:
        torch.set_num_threads(threads)
    assert results["classes"]["metrics"]["num_samples"] == COUNT
    assert 0 < results["classes"]["metrics"]["zeroshot-top1"] < 1
    assert results["captions"]["metrics"]["num_captions"] == sum(1 + n % 3 for n in range(COUNT))
    # Three batches of 50 pairs, which no number of ranks divides evenly.
    assert 1 < results["held_out"]["metrics"]["loss"] < 10
    return results


def test_any_number_of_processes_gives_the_same_results_to_the_last_bit(
    group: RankGroup, folder: Path, reference: dict[str, Any]
) -> None:
    answers = group(evaluated, folder)
    for rank, answer in enumerate(answers):
        assert answer["results"] == reference, rank
    batches = [answer["batches"] for answer in answers]
    assert sum(batches) == 3 * -(-COUNT // 64), "each batch is embedded by one rank"
    assert max(batches) - min(batches) <= 3


def test_no_rank_waits_for_one_that_failed(group: RankGroup) -> None:
    """Each evaluator of a name fails on the last rank at that place; `fine` does not fail."""
    expected = {
        "build": "not on this machine",
        "embed": "ZeroDivisionError: on one rank",
        "between": "MemoryError: on one rank, before a collective",
        "end": "ZeroDivisionError: at the end",
    }
    if group.world_size > 1:
        expected["size"] = "ranks have read test sets of different sizes"
    answers = group(failing, (*expected, "fine"))
    for rank, answer in enumerate(answers):
        assert answer["metrics"] == {"fine": {"sum": 3.0}}, rank
        messages = dict(zip(expected, answer["messages"], strict=True))
        for name, message in messages.items():
            assert message.startswith(f"evaluator {name} failed, training goes on:"), rank
            assert expected[name] in message, rank
            is_user_error = name in ("build", "size")
            assert ("Traceback" in message) != is_user_error, rank
            if group.world_size > 1 and not is_user_error:
                assert f"rank {group.world_size - 1} failed:\nTraceback" in message, rank


def test_a_signal_at_any_time_ends_an_evaluation_on_all_ranks_alike(group: RankGroup) -> None:
    ranks = group(signaled, 20)
    assert all(outcomes == ranks[0] for outcomes in ranks)
    assert {reason for is_signaled, reason in ranks[0] if not is_signaled} == {None}
    reasons = {reason for is_signaled, reason in ranks[0] if is_signaled}
    assert "SIGUSR1" in reasons <= {None, "SIGUSR1"}


def test_a_time_limit_of_one_rank_is_one_of_all(group: RankGroup) -> None:
    assert group(overdue, 0.02) == ["the time limit"] * group.world_size
