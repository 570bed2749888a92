"""Axes: round ticks inside, told apart by their words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipx.viz.scales import axis_over, exact_text, nice_ticks, tick_text, ticks_of

ENDS = st.tuples(st.floats(-1e6, 1e6, allow_nan=False), st.floats(1e-5, 1e6, allow_nan=False)).map(
    lambda pair: (pair[0], pair[0] + pair[1] * max(1.0, abs(pair[0]) * 1e-3))
)


@given(ENDS)
def test_ticks_lie_inside_and_are_about_five(ends: tuple[float, float]) -> None:
    low, high = ends
    ticks = nice_ticks(low, high)
    room = (high - low) * 1e-6
    assert 2 <= len(ticks) <= 6
    assert low - room <= ticks[0]
    assert ticks[-1] <= high + room


@given(ENDS)
def test_no_two_ticks_have_the_same_words(ends: tuple[float, float]) -> None:
    ticks = nice_ticks(*ends)
    assert len({tick_text(t, ticks) for t in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (0, 0.001, ["0", "0.0002", "0.0004", "0.0006", "0.0008", "0.0010"]),
        (0, 2e-5, ["0", "5e-06", "1e-05", "1.5e-05", "2e-05"]),
        (0, 25000, ["0", "5k", "10k", "15k", "20k", "25k"]),
        (1.0, 1.2, ["1.00", "1.05", "1.10", "1.15", "1.20"]),
    ],
)
def test_words_of_ticks(low: float, high: float, words: list[str]) -> None:
    ticks = nice_ticks(low, high)
    assert [tick_text(t, ticks) for t in ticks] == words


def test_an_axis_holds_its_values_and_is_logarithmic_where_they_span_much() -> None:
    plain = axis_over([2.0, 3.0], 100, 0)
    assert not plain.log
    assert 0 < plain(3.0) < plain(2.0) < 100
    wide = axis_over([1e-3, 1.0, 1000.0], 100, 0)
    assert wide.log
    assert wide(1.0) == pytest.approx(50)
    assert all(math.log10(t) % 1 == pytest.approx(0) for t in ticks_of(wide))
    assert axis_over([5.0, 1000.0], 100, 0, zero=True).low == 0


def test_an_axis_over_one_value_has_a_middle() -> None:
    for value in (0.0, 5.0, -5.0):
        assert 0 < axis_over([value], 100, 0)(value) <= 100


def test_exact_text() -> None:
    values = {
        1234.0: "1,234",
        0.12345: "0.1235",
        1234.5: "1,234",
        1e-7: "1e-07",
        12.0: "12",
        math.nan: "nan",
    }
    assert {v: exact_text(v) for v in values} == values
