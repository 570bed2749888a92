from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipx.engine.schedule import cosine


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (6, 0.5 + math.sqrt(0.125)), (8, 0.5), (12, 0.0)],
)
def test_values_worked_out_by_hand_for_4_of_12_steps_of_warmup(step: int, expected: float) -> None:
    assert cosine(step, 12, 4) == pytest.approx(expected, abs=1e-12)


def test_the_first_step_already_learns_and_the_last_one_still_does() -> None:
    assert cosine(0, 1000, 100) == 0.01
    assert 0 < cosine(999, 1000, 100) < 1e-5


@given(st.integers(1, 2000), st.integers(0, 500))
def test_it_is_in_0_1_peaks_at_the_end_of_warmup_and_is_0_at_the_end(
    after: int, warmup: int
) -> None:
    total = warmup + after
    values = [cosine(step, total, warmup) for step in range(total + 1)]
    assert all(0 <= value <= 1 for value in values)
    assert values[warmup] == 1
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert values[: warmup + 1] == sorted(values[: warmup + 1])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


@given(st.integers(1, 2000), st.integers(1, 500))
def test_no_step_changes_it_by_more_than_the_steepest_slope(after: int, warmup: int) -> None:
    """Continuity, at the end of warmup above all: a line rises by 1 / warmup, half a cosine falls
    by pi / 2 / after at most."""
    total = warmup + after
    values = [cosine(step, total, warmup) for step in range(total + 1)]
    steepest = max(1 / warmup, math.pi / 2 / after) + 1e-12
    assert all(abs(b - a) <= steepest for a, b in pairwise(values))


def test_a_warmup_longer_than_the_run_is_cut_off() -> None:
    assert [cosine(step, 3, 10) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])
