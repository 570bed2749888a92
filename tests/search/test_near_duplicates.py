"""Pairs, groups and what is kept, against slow references."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipx.search import near_duplicates, pair_forest, similar_pairs
from clipx.search.near_duplicates import find_duplicates, keep_largest
from clipx.search.pair_forest import PairForest
from clipx.search.similar_pairs import Pairs, all_pairs, pairs_within_clusters, proposed_pairs
from clipx.search.vector_index import Kind, Spec, VectorIndex, spec_of
from clipx.types import UserError

WIDTH = 16
Group = frozenset[int]


def around(centers: int, count: int, *, noise: float, seed: int = 0) -> np.ndarray:
    """Unit rows around some points."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(centers, WIDTH, generator=generator)
    label = torch.randint(0, centers, (count,), generator=generator)
    rows: Tensor = points[label] + noise * torch.randn(count, WIDTH, generator=generator)
    return F.normalize(rows, dim=1).numpy()


ROWS = around(60, 400, noise=0.25)
NUMBERS = np.arange(len(ROWS))
EXACT = ROWS.astype(np.float64) @ ROWS.astype(np.float64).T


def ignore(count: int) -> None:
    pass


def as_set(found: Iterable[Pairs]) -> set[tuple[int, int]]:
    pairs = []
    for block in found:
        pairs += zip(block.first.tolist(), block.second.tolist(), strict=True)
    assert len(pairs) == len(set(pairs)), "each pair once"
    return set(pairs)


def brute_pairs(threshold: float) -> set[tuple[int, int]]:
    first, second = np.nonzero(np.triu(threshold <= EXACT, k=1))
    return set(zip(first.tolist(), second.tolist(), strict=True))


def brute_groups(pairs: set[tuple[int, int]], count: int) -> set[Group]:
    """By merging sets, one pair after the other."""
    group_of = {row: {row} for row in range(count)}
    for first, second in pairs:
        if group_of[first] is not group_of[second]:
            merged = group_of[first] | group_of[second]
            for row in merged:
                group_of[row] = merged
    return {frozenset(group) for group in group_of.values() if len(group) > 1}


def groups_of(labels: np.ndarray) -> set[Group]:
    groups = [frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]
    return {group for group in groups if len(group) > 1}


@pytest.mark.parametrize("block", [1, 37, 2048])
def test_all_pairs_are_found_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar_pairs, "BLOCK", block)
    assert as_set(all_pairs(ROWS, NUMBERS, 0.9, ignore)) == brute_pairs(0.9)


@pytest.mark.parametrize("max_pairs", [10, 10**6])
def test_the_forest_has_the_groups_of_all_pairs_at_each_threshold(
    max_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it was reduced, and if pairs come twice."""
    monkeypatch.setattr(pair_forest, "MAX_PAIRS", max_pairs)
    monkeypatch.setattr(similar_pairs, "BLOCK", 50)
    thresholds = [0.8, 0.9, 0.95]
    forest = PairForest(len(ROWS), thresholds)
    for pairs in all_pairs(ROWS, NUMBERS, 0.8, ignore):
        forest.add(pairs)
        forest.add(Pairs(pairs.second, pairs.first, pairs.similarity))
        assert forest._num_held <= 4 * len(ROWS) + 2 * 50 * 50, "memory is linear in rows"
    counts = {count.threshold: count for count in forest.counts()}
    for threshold in thresholds:
        expected = brute_groups(brute_pairs(threshold), len(ROWS))
        assert len(expected) > 5
        assert groups_of(forest.labels(threshold)) == expected
        count = counts[threshold]
        assert count.pairs == 2 * len(brute_pairs(threshold))
        assert count.groups == len(expected)
        assert count.joined == sum(map(len, expected))
        assert count.largest == max(map(len, expected))


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_an_index_proposes_nearly_all_pairs_and_no_others(kind: Kind) -> None:
    rows = ROWS.astype(np.float16)
    spec = spec_of(kind, len(rows), WIDTH, effort=16)
    index = VectorIndex.build(spec, rows)
    found = set()
    for block in proposed_pairs(index, 0.9, ignore):
        found |= set(zip(block.first.tolist(), block.second.tolist(), strict=True))
    expected = brute_pairs(0.9)
    assert found <= brute_pairs(0.899)
    assert len(found & expected) > 0.95 * len(expected)


def test_an_index_counts_no_pair_twice() -> None:
    index = VectorIndex.build(spec_of("hnsw", len(ROWS), WIDTH, effort=64), ROWS)
    found = find_duplicates(
        index, np.ones(len(ROWS)), threshold=0.9, method="pairs", num_clusters=1, advance=ignore
    )
    for count in found.counts:
        expected = len(brute_pairs(count.threshold))
        assert 0.95 * expected <= count.pairs <= expected


def test_a_group_larger_than_the_first_candidates_is_found_whole() -> None:
    rows = np.concatenate([np.repeat(ROWS[:1], 150, axis=0), ROWS[1:]])
    index = VectorIndex.build(spec_of("ivf", len(rows), WIDTH, effort=8), rows)
    found = find_duplicates(
        index, np.ones(len(rows)), threshold=0.9999, method="pairs", num_clusters=1, advance=ignore
    )
    assert found.is_approximate
    assert found.groups[0].size == 150
    assert found.groups[0].kept == [0]
    (count,) = [count for count in found.counts if count.threshold == 0.9999]
    assert count.pairs == 150 * 149 // 2


def test_rows_that_are_all_alike_cost_no_quadratic_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a million pairs, of which a thousand are held."""
    monkeypatch.setattr(pair_forest, "MAX_PAIRS", 1000)
    monkeypatch.setattr(similar_pairs, "BLOCK", 64)
    rows = np.repeat(ROWS[:1], 1000, axis=0)
    held = []
    add = PairForest.add

    def counted(self: PairForest, pairs: Pairs, later_from: float | None = None) -> None:
        add(self, pairs, later_from)
        held.append(self._num_held)

    monkeypatch.setattr(PairForest, "add", counted)
    index = VectorIndex(Spec("exact"), rows)
    found = find_duplicates(
        index, np.ones(1000), threshold=1.0, method="pairs", num_clusters=1, advance=ignore
    )
    assert found.counts[-1].pairs == 1000 * 999 // 2
    assert max(held) <= 2000 + 64 * 64
    assert [group.size for group in found.groups] == [1000]


def test_of_a_group_the_largest_picture_is_kept_then_the_first() -> None:
    rows = np.repeat(ROWS[:3], [3, 2, 1], axis=0)
    labels = np.array([0, 0, 0, 1, 1, 2])
    area = np.array([4, 9, 9, 5, 5, 1])
    kept = keep_largest(rows, labels, area, 0.99)
    assert np.flatnonzero(kept).tolist() == [1, 3, 5]


@pytest.mark.parametrize("block", [1, 3, 256])
def test_of_a_chain_each_dropped_picture_is_similar_to_a_kept_one(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbors on a circle are alike, and the ends are opposite."""
    monkeypatch.setattr(near_duplicates, "COVERED_ROWS", block)
    angle = np.linspace(0, np.pi, 32)
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    threshold = float(np.cos(0.15))
    index = VectorIndex(Spec("exact"), rows)
    found = find_duplicates(
        index, np.ones(32), threshold=threshold, method="pairs", num_clusters=1, advance=ignore
    )
    (group,) = found.groups
    assert group.size == 32
    # Steps of 0.1: each kept picture stands for the one after it.
    assert group.kept == list(range(0, 32, 2))
    assert min(group.similarity) >= threshold - 1e-6


def test_semdedup_drops_what_is_similar_to_a_row_farther_from_the_center() -> None:
    """As the definition says, cluster by cluster and pair by pair."""
    index = VectorIndex(Spec("exact"), ROWS)
    found = find_duplicates(
        index, np.ones(len(ROWS)), threshold=0.9, method="semdedup", num_clusters=6, advance=ignore
    )
    clusters = near_duplicates.cluster_rows(ROWS, 6)
    expected = set()
    for label in range(len(clusters.centers)):
        members = np.flatnonzero(clusters.labels == label)
        members = members[np.argsort(clusters.similarity[members], kind="stable")]
        for place, row in enumerate(members):
            if any(EXACT[row, other] >= 0.9 for other in members[:place]):
                expected.add(int(row))
    dropped = {row for group in found.groups for row in group.dropped}
    assert dropped == expected
    assert 20 < len(dropped) < 380
    assert not found.is_approximate


def test_pairs_within_clusters_are_those_of_equal_labels() -> None:
    labels = np.arange(len(ROWS)) % 3
    centrality = np.linspace(1, 0, len(ROWS)).astype(np.float32)
    found = as_set(pairs_within_clusters(ROWS, NUMBERS, labels, centrality, 0.9, ignore))
    expected = {(j, i) for i, j in brute_pairs(0.9) if labels[i] == labels[j]}
    assert found == expected, "the later row is farther from the center here"


@pytest.mark.parametrize("method", ["pairs", "semdedup"])
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_duplicates_of_a_corpus_with_removed_rows_are_those_of_the_others(
    method: near_duplicates.Method, kind: Kind
) -> None:
    index = VectorIndex.build(spec_of(kind, len(ROWS), WIDTH, effort=64), ROWS)
    kept = np.setdiff1d(NUMBERS, np.arange(0, 400, 3))
    alone = VectorIndex.build(spec_of(kind, len(kept), WIDTH, effort=64), ROWS[kept])
    found, expected = (
        find_duplicates(
            vectors,
            np.ones(len(vectors.rows)),
            threshold=0.9,
            method=method,
            num_clusters=6,
            advance=ignore,
        )
        for vectors in (index.without(np.arange(0, 400, 3)), alone)
    )
    assert len(expected.groups) > 10
    assert [group.kept for group in found.groups] == [
        kept[group.kept].tolist() for group in expected.groups
    ]
    assert found.num_dropped == expected.num_dropped
    assert found.counts[-1].groups == expected.counts[-1].groups


def test_rows_that_are_all_different_have_no_groups() -> None:
    index = VectorIndex(Spec("exact"), np.eye(10, dtype=np.float32))
    for method in ("pairs", "semdedup"):
        found = find_duplicates(
            index, np.ones(10), threshold=0.9, method=method, num_clusters=2, advance=ignore
        )
        assert found.groups == []
        assert found.num_dropped == 0
        assert [count.pairs for count in found.counts] == [0] * len(found.counts)


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_is_none_is_refused(threshold: float) -> None:
    index = VectorIndex(Spec("exact"), ROWS)
    with pytest.raises(UserError, match=r"is not in \(0, 1\]"):
        find_duplicates(
            index, np.ones(400), threshold=threshold, method="pairs", num_clusters=1, advance=ignore
        )


def test_one_picture_alone_is_refused() -> None:
    with pytest.raises(UserError, match="no other picture to compare with"):
        find_duplicates(
            VectorIndex(Spec("exact"), ROWS[:1]),
            np.ones(1),
            threshold=0.9,
            method="pairs",
            num_clusters=1,
            advance=ignore,
        )
