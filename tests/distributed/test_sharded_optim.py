"""Two ranks that share out their parameters (FSDP2) against one process that has them all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sharded_checks
import torch
from ranks import run_ranks


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as on the ranks: more threads round otherwise
    try:
        return sharded_checks.measure(sharded=False)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sharded() -> list[dict[str, Any]]:
    return run_ranks(sharded_checks.on_each_rank, 2)


def assert_close(found: Any, expected: Any, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.tensor(found[name]),
            torch.tensor(value),
            msg=lambda text, name=name: f"{name}: {text}",
            **tolerance,
        )


def test_the_norm_counts_each_shard_once_and_the_scalar_once(
    alone: dict[str, Any], sharded: list[dict[str, Any]]
) -> None:
    for found in sharded:
        for key in ("before", "told", "after", "scalar", "shards"):
            assert found["norms"][key] == pytest.approx(alone["norms"][key], rel=1e-6)
        assert found["norms"]["after"] == pytest.approx(0.01, rel=1e-6)
        # float32: reduce-scatter adds and halves what one process has as it is
        assert_close(found["norms"]["clipped"], alone["norms"]["clipped"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", sharded_checks.KINDS)
def test_steps_lead_to_the_same_weights(
    kind: str, alone: dict[str, Any], sharded: list[dict[str, Any]]
) -> None:
    # Muon's bfloat16 products are summed in another order, and Newton-Schulz amplifies what they
    # round: 1 % of four updates of about 0.02.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if kind != "muon" else {"rtol": 0, "atol": 2e-3}
    for found in sharded:
        assert_close(found["weights"][kind], alone["weights"][kind], **tolerance)


def test_averages_are_the_same_and_leave_the_weights_as_they_were(
    alone: dict[str, Any], sharded: list[dict[str, Any]]
) -> None:
    for found in [alone, *(rank["average"] for rank in sharded)]:
        found = found.get("average", found)
        expected = alone["average"]
        assert found["restored"]
        assert found["inside"] == {k: v for k, v in found["state"].items() if k != "num_updates"}
        assert_close(found["state"], expected["state"], rtol=1e-5, atol=1e-7)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_an_overflow_of_one_rank_is_seen_by_all(
    alone: dict[str, Any], sharded: list[dict[str, Any]]
) -> None:
    for found in sharded:
        assert found["overflow"] == [math.inf, pytest.approx(alone["overflow"][1], rel=1e-5)]
    assert alone["overflow"][1] == pytest.approx(alone["norms"]["before"], rel=1e-5)
