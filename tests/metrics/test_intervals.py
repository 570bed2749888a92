"""Intervals against scipy, closed forms and experiments. test_coverage.py simulates evaluators."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clipx import metrics
from clipx.metrics.distributions import (
    OBSERVED_SHARE,
    binomial_interval,
    student_quantile,
)
from clipx.metrics.embedding import modality_gap, modality_gap_interval
from clipx.types import Interval


@pytest.mark.parametrize("freedom", [1, 2, 3, 7.5, 50, 1000])
def test_the_quantiles_of_students_t_are_scipys(freedom: float) -> None:
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)


def test_the_tails_of_the_binomial_interval_are_those_it_states() -> None:
    for hits, count in ((7, 20), (1, 50), (49, 50)):
        low, high = binomial_interval(hits, count)
        above, equal = stats.binom.sf(hits, count, low), stats.binom.pmf(hits, count, low)
        assert above + OBSERVED_SHARE * equal == pytest.approx(0.025, rel=1e-6)
        below, equal = stats.binom.cdf(hits - 1, count, high), stats.binom.pmf(hits, count, high)
        assert below + OBSERVED_SHARE * equal == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize("count", [1, 5, 20, 50, 300])
def test_the_interval_of_a_rate_covers_every_rate_at_93_or_more(count: int) -> None:
    """Exactly, not by simulation. Wilson's falls to 84 %."""
    ends = torch.tensor([binomial_interval(hits, count) for hits in range(count + 1)])
    hits = torch.arange(count + 1).numpy()
    edge = [share / count for share in (0.05, 0.17, 0.4, 0.55, 0.9)]
    for rate in [*edge, *(1 - e for e in edge), *torch.linspace(0.02, 0.98, 97).tolist()]:
        inside = ((ends[:, 0] <= rate) & (rate <= ends[:, 1])).numpy()
        assert stats.binom.pmf(hits, count, rate)[inside].sum() > 0.93, rate


def test_all_hits_or_none_leave_room() -> None:
    """The issue's [100 %, 100 %]: 50 images, all of whose five captions are found."""
    for weights in (None, torch.full((50,), 5.0), torch.arange(50) % 5 + 1):
        interval = metrics.rate_interval(torch.ones(50), weights)
        assert interval is not None
        assert interval[1] == 1
        assert 0.85 < interval[0] < 0.95
    interval = metrics.class_mean_interval(torch.ones(60, dtype=torch.bool), torch.arange(60) // 2)
    assert interval is not None
    assert interval[0] < 0.96


VALUES = st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=30)


@settings(deadline=None, max_examples=100)
@given(values=VALUES, data=st.data())
def test_an_interval_holds_its_own_value(values: list[float], data: st.DataObject) -> None:
    row = torch.tensor(values)
    numbers = st.lists(st.integers(1, 7), min_size=len(row), max_size=len(row))
    weights = torch.tensor(data.draw(numbers))
    group = torch.tensor(data.draw(numbers))
    hits, positive = row > 0.3, row > 0.1
    found = {
        "share": (metrics.weighted_mean(row, weights), metrics.rate_interval(row, weights)),
        "classes": (
            metrics.mean_per_class_recall(torch.where(hits, group, 0), group, 8),
            metrics.class_mean_interval(hits, group),
        ),
        "median": (row.double().quantile(0.5).item(), _median(row)),
        "mean": (row.double().mean().item(), metrics.student_interval(row)),
    }
    if positive.any() and not positive.all():
        score = weights.double()
        found["auroc"] = metrics.auroc(score, positive), metrics.auroc_interval(score, positive)
    if positive.any():
        ratio = float(row.double().sum() / positive.sum())
        found["ratio"] = ratio, metrics.ratio_interval(row, positive)
    parts = [(row, None), (row[: len(row) // 2 + 1], None)]
    means = [metrics.weighted_mean(*part) for part in parts]
    found["worst"] = min(means), metrics.worst_interval(parts)
    found["best"] = max(means), metrics.best_interval(parts)
    for name, (value, interval) in found.items():
        if interval is not None:
            assert interval[0] - 1e-9 <= value <= interval[1] + 1e-9, name
            assert all(math.isfinite(end) for end in interval), name


def _median(row: torch.Tensor) -> Interval | None:
    return metrics.median_interval(row, torch.arange(len(row)))


def test_captions_that_are_alike_count_as_one_trial() -> None:
    """20 captions of each of 50 images, all found or none: 50 trials, not 1000."""
    values, size = metrics.by_group(
        (torch.arange(50) % 2).repeat_interleave(20), torch.arange(50).repeat_interleave(20)
    )
    assert metrics.rate_interval(values, size) == binomial_interval(25, 50)


def test_failures_that_a_set_happens_not_to_have_are_allowed_for() -> None:
    """Of 100 images of which 3 fail altogether, one set in 20 has none that does: a mean of shares
    that are 0.8 or 1 is no proof that they are so in other sets."""
    values = torch.ones(100)
    values[:8] = 0.8
    low, high = metrics.rate_interval(values) or (1.0, 0.0)
    assert low < 0.97 * 0.984 < 0.984 < high


def test_a_class_with_one_image_shows_no_scatter_and_yet_has_an_interval() -> None:
    """One image a class: between the binomial interval of the images and one that is wider."""
    hits = torch.arange(40) < 30
    interval = metrics.class_mean_interval(hits, torch.arange(40))
    expected = binomial_interval(30, 40)
    assert interval is not None
    assert interval == pytest.approx(expected, abs=0.01)
    assert interval[1] - interval[0] >= expected[1] - expected[0]


def test_the_worst_of_many_equal_groups_is_not_taken_at_its_word() -> None:
    """Of 40 groups of 20 at 50 %, the worst has about 25 %: alone, its interval ends at 48 %."""
    generator = torch.Generator().manual_seed(0)
    groups = [
        (torch.bernoulli(torch.full((20,), 0.5), generator=generator), None) for _ in range(40)
    ]
    low, high = metrics.worst_interval(groups) or (1.0, 0.0)
    worst = min(groups, key=lambda group: float(group[0].mean()))
    alone = metrics.rate_interval(worst[0])
    assert alone is not None
    assert alone[1] < 0.5 < high
    assert low < 0.5


def test_a_mean_by_students_t_is_scipys_and_needs_ten_values_that_deviate() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = metrics.student_interval(values)
    error = stats.sem(values.numpy())
    expected = stats.t.interval(0.95, 39, values.mean().item(), error)
    assert found == pytest.approx(expected, rel=1e-6)
    assert metrics.student_interval((torch.arange(100) < 9).double()) is None
    assert metrics.student_interval((torch.arange(100) < 10).double()) is not None


def test_perfect_separation_leaves_room_and_few_or_equal_scores_have_no_interval() -> None:
    positive = torch.arange(40) < 20
    low, high = metrics.auroc_interval(positive.double(), positive) or (1.0, 0.0)
    assert high == 1
    assert 0.8 < low < 0.95
    assert metrics.auroc_interval(torch.zeros(40), positive) is None
    assert metrics.auroc_interval(torch.rand(30), positive[:30]) is None  # 10 negatives


def test_delongs_variance_is_that_of_the_definition() -> None:
    """Against the sums over pairs, for scores with ties."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(8, (300,), generator=generator).double()
    positive = torch.arange(300) < 150
    score[positive] += 2
    one, other = score[positive], score[~positive]
    above = (one[:, None] > other).double() + (one[:, None] == other).double() / 2
    area = above.mean().item()
    variance = above.mean(1).var().item() / 150 + above.mean(0).var().item() / 150
    logit, spread = math.log(area / (1 - area)), area * (1 - area)
    low, high = metrics.auroc_interval(score, positive) or (0.0, 0.0)
    error = math.sqrt(variance + spread / 150**2) / spread
    for end, sign in ((low, -1), (high, 1)):
        expected = 1 / (1 + math.exp(-(logit + sign * 1.968 * error)))
        assert end == pytest.approx(expected, abs=2e-4)


def test_the_gap_of_two_modalities_is_corrected_for_the_noise_of_the_means() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (0.3 * torch.randn(100, 50, generator=generator) for _ in "ab")
    assert modality_gap_interval(image, text) is None, "no gap but noise"
    image[:, 0] += 1
    low, high = modality_gap_interval(image, text) or (0.0, 0.0)
    assert low < 1 < high
    assert low < modality_gap(image, text) <= high
