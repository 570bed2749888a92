"""Evaluation shared among processes: the same numbers on all ranks and for any number of them, and
no rank waits for one that failed."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from evaluation_checks import FOLDER, evaluated, failing, overdue, signaled
from run_ranks import run_ranks
from tiny_runs import COLORS, picture, png, write_tar

COUNT = 331  # prime: no number of ranks divides it, and the last batch is short


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sets")
    names = list(COLORS)
    for kind, label in (("classes", "cls"), ("captions", "txt")):
        members: dict[str, bytes] = {}
        for n in range(COUNT):
            captions = "\n".join(f"{n} {names[n % 4]} {k}" for k in range(1 + n % 3))
            members[f"{n:03d}.png"] = png(picture(names[n % 4], "bar", n))
            members[f"{n:03d}.{label}"] = (str(n % 4) if label == "cls" else captions).encode()
        write_tar(folder / kind / "test/0.tar", members)
    (folder / "classes/classnames.txt").write_text("\n".join(names))
    (folder / "classes/zeroshot_classification_templates.txt").write_text("a {c} bar")
    os.environ[FOLDER] = str(folder)
    try:
        return {size: run_ranks(evaluated, size) for size in (1, 2, 4)}
    finally:
        del os.environ[FOLDER]


def test_one_two_and_four_processes_find_the_same_to_the_last_bit(
    results: dict[int, list[dict[str, Any]]],
) -> None:
    reference = results[1][0]["results"]
    assert reference["classes"]["metrics"]["num_samples"] == COUNT
    assert 0 < reference["classes"]["metrics"]["zeroshot-top1"] < 1
    assert reference["captions"]["metrics"]["num_captions"] == sum(1 + n % 3 for n in range(COUNT))
    for size, ranks in results.items():
        for rank in ranks:
            assert rank["results"] == reference, size


def test_every_batch_is_embedded_by_one_rank(results: dict[int, list[dict[str, Any]]]) -> None:
    for ranks in results.values():
        batches = [rank["batches"] for rank in ranks]
        assert sum(batches) == 2 * -(-COUNT // 64)
        assert max(batches) - min(batches) <= 2


def test_no_rank_waits_for_one_that_failed() -> None:
    first, second = run_ranks(failing, 2)
    assert first["metrics"] == second["metrics"] == {"fine": {"sum": 3.0}}
    for rank, messages in enumerate((first["messages"], second["messages"])):
        reasons = dict(
            re.findall(r"evaluator (\w+) failed, training goes on:\s(.*)", "\n".join(messages))
        )
        assert list(reasons) == ["build", "embed", "between", "end", "size"], rank
        assert reasons["build"] == "not on this machine"
        assert reasons["size"].startswith("ranks have read test sets of different sizes"), rank
        for kind, error in (
            ("embed", "ZeroDivisionError: on one rank"),
            ("between", "MemoryError: on one rank, before a collective"),
            ("end", "ZeroDivisionError: at the end"),
        ):
            (message,) = [text for text in messages if text.startswith(f"evaluator {kind} ")]
            assert "rank 1 failed:\nTraceback" in message, rank
            assert error in message, rank


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_signal_at_any_time_ends_an_evaluation_on_all_ranks_alike(world_size: int) -> None:
    ranks = run_ranks(signaled, world_size)
    assert all(outcomes == ranks[0] for outcomes in ranks)
    assert {reason for is_signaled, reason in ranks[0] if not is_signaled} == {None}
    reasons = {reason for is_signaled, reason in ranks[0] if is_signaled}
    assert "SIGUSR1" in reasons <= {None, "SIGUSR1"}


def test_a_time_limit_of_one_rank_is_one_of_all() -> None:
    assert run_ranks(overdue, 1) == ["the time limit"]
    assert run_ranks(overdue, 2) == ["the time limit"] * 2
