"""Intervals and tests against closed forms, tables and experiments."""

from __future__ import annotations

import math

import pytest
import torch

from clipx import metrics


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


def test_the_bootstrap_of_a_mean_has_the_width_of_the_normal_interval() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = metrics.bootstrap_interval(lambda i: values[i].mean().item(), 400)
    expected = 2 * 1.96 * values.std().item() / 20
    # The quantiles of 1000 resamples have a standard error of 5 % of the width.
    assert high - low == pytest.approx(expected, rel=0.15)
    assert (low + high) / 2 == pytest.approx(values.mean().item(), abs=expected / 10)


def test_the_bootstrap_is_the_same_twice_and_leaves_the_global_generator_alone() -> None:
    values, state = torch.rand(30), torch.get_rng_state()
    first, second = (metrics.mean_interval(values) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.get_rng_state())


def test_means_of_zeros_and_ones_have_wilsons_interval() -> None:
    assert metrics.mean_interval(torch.tensor([1, 0, 0, 1])) == metrics.wilson_interval(0.5, 4)


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),  # 2 * P(X <= 3 of 6) is above 1
        (0, 5, 2 / 32),
        (1, 7, 2 * (1 + 8) / 256),
        (6, 16, 2 * sum(math.comb(22, k) for k in range(7)) / 2**22),  # 0.0525
        (25_000, 25_500, 2 * 0.01308),  # a normal approximation with continuity: z = 2.2209
    ],
)
def test_mcnemar_is_the_binomial_test_of_the_samples_that_one_alone_gets_right(
    one: int, other: int, p: float
) -> None:
    found = metrics.mcnemar(one, other)
    assert found == metrics.mcnemar(other, one)
    assert found == pytest.approx(p, rel=1e-9 if one < 1000 else 0.02)


def test_pairing_sees_what_two_separate_intervals_do_not() -> None:
    hard = torch.rand(500, generator=torch.Generator().manual_seed(0))
    low, high = metrics.paired_bootstrap(hard, hard + 0.01)
    assert low == pytest.approx(0.01, abs=1e-6)
    assert high == pytest.approx(0.01, abs=1e-6)
    assert metrics.mean_interval(hard)[1] - metrics.mean_interval(hard)[0] > 0.04


def test_the_interval_of_a_median_covers_it_in_95_of_100_experiments() -> None:
    # 2000 experiments: the share covered has a standard error of 0.5 %; order statistics of 60
    # values cover by 1 % more or less.
    values = torch.rand(2000, 60, generator=torch.Generator().manual_seed(0)) ** 3
    covered = 0
    for row in values:
        low, high = metrics.median_interval(row, 60)
        covered += low <= 0.5**3 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.03)
