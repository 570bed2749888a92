from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipx.training.schedule import ScheduleConfig, rate

COSINE, CONSTANT, WSD = (ScheduleConfig(kind=kind) for kind in ("cosine", "constant", "wsd"))
LINEAR = ScheduleConfig(kind="wsd", cooldown_shape="linear")
FLOOR = {"min_lr_fraction": 0.1}
configs = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["cosine", "constant", "wsd"]),
    min_lr_fraction=st.sampled_from([0.0, 0.1, 1.0]),
    cooldown_shape=st.sampled_from(["sqrt", "linear"]),
)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (6, 0.5 + math.sqrt(0.125)), (8, 0.5), (12, 0.0)],
)
def test_cosine_worked_out_by_hand_for_4_of_12_steps_of_warmup(step: int, expected: float) -> None:
    assert rate(COSINE, step, 12, 4) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONSTANT, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (LINEAR, [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (WSD, [0.5, 1, 1, 1, 1, 1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]),
        (
            ScheduleConfig(kind="wsd", cooldown_shape="linear", **FLOOR),
            [0.5, 1, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325],
        ),
    ],
)
def test_ten_steps_worked_out_by_hand_with_2_of_warmup_and_4_of_cooldown(
    config: ScheduleConfig, expected: list[float]
) -> None:
    assert [rate(config, step, 10, 2, 4) for step in range(10)] == pytest.approx(expected)


def test_the_first_step_already_learns_and_the_last_one_still_does() -> None:
    for config in (COSINE, WSD, LINEAR):
        assert rate(config, 0, 1000, 100, 200) == 0.01
        assert 0 < rate(config, 999, 1000, 100, 200) < 6e-3


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_it_ends_at_the_fraction_asked_for(kind: Any) -> None:
    assert rate(ScheduleConfig(kind=kind, **FLOOR), 50, 50, 5, 20) == pytest.approx(0.1)


def steps(config: ScheduleConfig, after: int, warmup: int, cooldown: int) -> list[float]:
    total = warmup + after
    return [rate(config, step, total, warmup, cooldown) for step in range(total + 1)]


@given(configs, st.integers(1, 1000), st.integers(0, 300), st.integers(0, 1500))
def test_it_rises_to_1_at_the_end_of_warmup_and_never_again_and_stays_in_its_bounds(
    config: ScheduleConfig, after: int, warmup: int, cooldown: int
) -> None:
    values = steps(config, after, warmup, cooldown)
    assert all(0 <= value <= 1 for value in values)
    assert values[warmup] == 1
    assert values[: warmup + 1] == sorted(values[: warmup + 1])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    assert all(value >= config.min_lr_fraction - 1e-12 for value in values[warmup:])


@given(
    st.sampled_from([COSINE, CONSTANT, LINEAR]), st.integers(1, 1000), st.integers(1, 300),
    st.integers(1, 1500),
)  # fmt: skip
def test_no_step_changes_it_by_more_than_the_steepest_slope(
    config: ScheduleConfig, after: int, warmup: int, cooldown: int
) -> None:
    """Continuity, at the ends of warmup and of the stable phase above all: lines fall and rise by 1
    in their whole length, half a cosine by pi / 2 times that at most."""
    values = steps(config, after, warmup, cooldown)
    fall = {"cosine": math.pi / 2 / after, "constant": 0, "wsd": 1 / min(after, cooldown)}
    steepest = max(1 / warmup, fall[config.kind]) + 1e-12
    assert all(abs(b - a) <= steepest for a, b in pairwise(values))


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 100), st.integers(0, 100))
def test_a_longer_run_is_the_same_up_to_the_cooldown_of_the_shorter(
    stable: int, warmup: int, cooldown: int, longer: int
) -> None:
    """So that a checkpoint of the stable phase serves runs of any length (arXiv:2405.18392)."""
    total = warmup + stable + cooldown
    for step in range(warmup + stable):
        short, long = (rate(WSD, step, t, warmup, cooldown) for t in (total, total + longer))
        assert short == long


def test_a_warmup_longer_than_the_run_is_cut_off() -> None:
    for config in (COSINE, CONSTANT, WSD):
        found = [rate(config, step, 3, 10, 1) for step in range(3)]
        assert found == pytest.approx([0.1, 0.2, 0.3])


def test_a_cooldown_does_not_begin_before_the_end_of_warmup() -> None:
    values = [rate(LINEAR, step, 6, 2, 100) for step in range(6)]
    assert values == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"kind": "step"}, "'cosine', 'constant' or 'wsd'"), ({"min_lr_fraction": 1.5}, "less than")],
)
def test_what_is_no_schedule_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**wrong)
