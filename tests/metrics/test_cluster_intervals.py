"""Clusters of samples that are not independent: copies count once, and clusters of one are samples.

test_coverage.py simulates clusters between these two.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipx import metrics
from clipx.comparison import difference
from clipx.evaluators.embedding_health import health
from clipx.evaluators.fairness import slice_result
from clipx.evaluators.prompt_sensitivity import sensitivity_result
from clipx.evaluators.retrieval import retrieval_result
from clipx.evaluators.robustness import robustness_result
from clipx.metrics.distributions import binomial_interval
from clipx.types import Result

NUM = 60
GENERATOR = torch.Generator().manual_seed(0)
DRAWN = torch.rand(8, NUM, generator=GENERATOR, dtype=torch.float64)
ROWS = torch.randn(2, NUM, 8, generator=GENERATOR)


def results(copies: int, clusters: Tensor | None) -> list[Result]:
    """Of several evaluators, over NUM samples that are there `copies` times each."""

    def each(values: Tensor) -> Tensor:
        return values.repeat_interleave(copies, dim=0)

    keys = [str(n) for n in range(NUM * copies)]
    hits = (DRAWN > 0.3).double()
    shares = each(DRAWN[1])
    rates = Result(keys=keys, clusters=clusters)
    metrics.add_rate(rates, "hit", each(hits[0]))
    metrics.add_rate(rates, "share", shares)
    metrics.add_rate(rates, "weighted", shares, each(torch.arange(NUM) % 5))
    label = each(torch.arange(NUM) % 7)
    recall = metrics.class_mean_interval(each(hits[2]), label, clusters)
    rates.add("recall", 0.0, recall)

    closer = each((8 * DRAWN[3]).long())
    owner = torch.arange(len(keys))
    ranks = metrics.PairRanks(closer, closer, owner)
    alone = {"a {c}": each(hits[4]), "the {c}": each(hits[5])}
    corrupted = {"noise-top1": each(DRAWN[6] * hits[7])}
    image, text = torch.nn.functional.normalize(ROWS, dim=-1)
    return [
        rates,
        retrieval_result(ranks, keys, clusters),
        sensitivity_result(alone, each(hits[6]), keys, clusters),
        robustness_result(each(hits[7]), corrupted, [], keys, clusters),
        slice_result(rates, [str(n // copies % 3) for n in range(len(keys))]),
        health(each(image), each(text), clusters),
    ]


def assert_same_intervals(first: list[Result], second: list[Result]) -> None:
    for one, other in zip(first, second, strict=True):
        both = one.intervals.keys() | other.intervals.keys()
        assert both - {"modality_gap"}  # which has no interval for clusters
        for name in both - {"modality_gap"}:
            assert one.intervals[name] == pytest.approx(other.intervals[name], rel=1e-9), name


def test_copies_of_samples_in_one_cluster_change_no_interval() -> None:
    clusters = torch.randperm(NUM, generator=GENERATOR).repeat_interleave(3)
    assert_same_intervals(results(3, clusters), results(1, None))
    narrower = results(3, None)[0].intervals["hit"]
    wide = results(3, clusters)[0].intervals["hit"]
    assert wide[1] - wide[0] > 1.5 * (narrower[1] - narrower[0])


def test_clusters_of_one_change_no_interval() -> None:
    clusters = torch.randperm(NUM, generator=GENERATOR)
    assert_same_intervals(results(1, clusters), results(1, None))
    for one, other in zip(results(1, clusters)[:1], results(1, None)[:1], strict=True):
        for name in ("hit", "share", "weighted"):
            assert one.intervals[name] == other.intervals[name], "to the last bit"


def test_hits_that_are_alike_in_clusters_are_binomial() -> None:
    hits = torch.arange(20) < 13
    group = metrics.by_cluster(hits.repeat_interleave(4), None, torch.arange(80) // 4)
    assert metrics.rate_interval(*group) == binomial_interval(13, 20)


def test_the_variance_is_that_of_the_sums_of_clusters() -> None:
    """The formula of arXiv:2411.00640, 2.2, over pairs of samples, for many clusters."""
    clusters = torch.arange(400).repeat_interleave(torch.arange(400) % 4 + 1)
    chance = torch.rand(400, generator=GENERATOR)[clusters]
    hits = (torch.rand(len(clusters), generator=GENERATOR) < chance).double()
    deviation = hits - hits.mean()
    is_same = clusters[:, None] == clusters
    variance = (deviation[:, None] * deviation * is_same).sum().item() / len(hits) ** 2
    low, high = metrics.rate_interval(*metrics.by_cluster(hits, None, clusters)) or (0.0, 0.0)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.02)


@settings(deadline=None)
@given(data=st.data(), count=st.integers(1, 30))
def test_the_mean_over_clusters_is_that_over_samples(data: st.DataObject, count: int) -> None:
    def drawn(values: st.SearchStrategy[float]) -> Tensor:
        return torch.tensor(data.draw(st.lists(values, min_size=count, max_size=count)))

    values = drawn(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    weights = drawn(st.integers(0, 3)).double()
    weights[0] = 1
    clusters = drawn(st.integers(-3, 3))
    for each in (None, weights):
        mean, size = metrics.by_cluster(values, each, clusters)
        assert len(mean) == len(clusters.unique())
        assert ((mean >= 0) & (mean <= 1)).all()
        expected = metrics.weighted_mean(values, each)
        assert metrics.weighted_mean(mean, size) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("is_binary", [True, False])
def test_a_paired_test_counts_copies_once(is_binary: bool) -> None:
    first, second = DRAWN[:2]
    if is_binary:
        first, second = (first > 0.3).double(), (second > 0.6).double()
    alone = difference("set", "metric", first, second)
    copies = (first.repeat_interleave(5), second.repeat_interleave(5))
    clusters = torch.arange(NUM).repeat_interleave(5)
    found = difference("set", "metric", *copies, clusters=clusters)
    assert (found.num_samples, found.num_clusters) == (5 * NUM, NUM)
    assert found.p == alone.p
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), rel=1e-9)
    assert difference("set", "metric", *copies).p < alone.p
