"""Clustering, detection and the health of embeddings against scikit-learn and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.cluster import KMeans
from torch.nn import functional as F

from clipx import metrics
from clipx.metrics import embedding

GROUPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=2, max_size=60)


@settings(deadline=None, max_examples=80)
@given(pairs=GROUPS)
def test_nmi_and_ari_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    one, two = (torch.tensor(column) for column in zip(*pairs, strict=True))
    nmi = metrics.normalized_mutual_information(one, two)
    ari = metrics.adjusted_rand_index(one, two)
    with np.errstate(all="ignore"):
        expected_nmi = sklearn_metrics.normalized_mutual_info_score(one, two)
        expected_ari = sklearn_metrics.adjusted_rand_score(one, two)
    assert nmi == pytest.approx(expected_nmi, rel=1e-12, abs=1e-12)
    assert ari == pytest.approx(expected_ari, rel=1e-12, abs=1e-12)


@settings(deadline=None, max_examples=80)
@given(pairs=st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60))
def test_auroc_is_scikit_learns_ties_and_all(pairs: list[tuple[int, bool]]) -> None:
    score, positive = (torch.tensor(column) for column in zip(*pairs, strict=True))
    if positive.all() or not positive.any():
        return
    expected = sklearn_metrics.roc_auc_score(positive, score)
    assert metrics.auroc(score.float(), positive) == pytest.approx(expected, rel=1e-14)


def test_k_means_finds_separate_groups_and_the_same_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(90) % 6
    rows = 10 * torch.eye(6)[label] + 0.1 * torch.randn(90, 6, generator=generator)
    found = metrics.k_means(rows, 6)
    assert metrics.adjusted_rand_index(found, label) == 1.0
    assert torch.equal(metrics.k_means(rows, 6), found)


def test_k_means_is_as_good_as_scikit_learns() -> None:
    rows = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    found = metrics.k_means(rows, 8)
    centers = torch.stack([rows[found == c].mean(0) for c in range(8)])
    inertia = (rows - centers[found]).square().sum().item()
    theirs = KMeans(8, n_init=10, random_state=0).fit(rows.numpy()).inertia_
    assert inertia < 1.02 * theirs  # both are the best of ten starts, not the optimum


def test_k_means_of_equal_rows_is_one_group() -> None:
    assert len(metrics.k_means(torch.ones(7, 3), 3).unique()) == 1


def test_nearest_neighbors_by_blocks_are_those_of_the_whole_matrix() -> None:
    rows = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    whole = (rows @ rows.T).fill_diagonal_(-2).topk(3)
    for block in (7, 50):
        values, indices = metrics.nearest_neighbors(rows, rows, 3, skip_self=True, block=block)
        assert torch.equal(indices, whole.indices)
        torch.testing.assert_close(values, whole.values)


def test_alignment_and_gap_by_hand() -> None:
    image = torch.tensor([[1.0, 0], [1, 0]])
    text = torch.tensor([[0.0, 1], [1, 0]])
    assert embedding.alignment(image, text) == 1.0  # of 2 and 0
    assert embedding.modality_gap(image, text) == pytest.approx(0.5**0.5)
    assert embedding.mean_norm(text) == pytest.approx(0.5**0.5)


def test_uniformity_by_hand_and_on_the_sphere() -> None:
    corners = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])  # squared distances 2, 2, 4
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert embedding.uniformity(corners) == pytest.approx(expected, rel=1e-6)
    assert embedding.uniformity(corners, block=2) == pytest.approx(expected, rel=1e-6)
    assert embedding.uniformity(torch.eye(5)[[0] * 9]) == 0
    # On a sphere of 512 dimensions cosines are normal with variance 1/512:
    # log E exp(-4 + 4 cos) = -4 + 8 / 512
    rows = F.normalize(torch.randn(2000, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert embedding.uniformity(rows) == pytest.approx(-4 + 8 / 512, abs=1e-3)


def test_effective_rank_counts_the_directions_in_use() -> None:
    axes = torch.cat([torch.eye(6)[:4], -torch.eye(6)[:4]])
    assert embedding.effective_rank(axes) == pytest.approx(4)
    assert embedding.effective_rank(torch.ones(5, 3)) == 1.0
    line = torch.tensor([[1.0, 0], [-1, 0], [0, 0.5], [0, -0.5]])  # singular values 2 : 1
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert embedding.effective_rank(line) == pytest.approx(math.exp(entropy))


def test_dead_dimensions_are_those_that_do_not_vary() -> None:
    rows = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    rows[:, 1] = 0.3
    assert embedding.dead_dimensions(rows) == 0.25


def test_hubness_is_the_skewness_of_how_often_each_is_found() -> None:
    from scipy.stats import skew

    neighbors = torch.tensor([[0, 1], [0, 2], [0, 1], [0, 3]])
    assert embedding.hubness(neighbors, 5) == pytest.approx(float(skew([4, 2, 1, 1, 0])))
    assert embedding.hubness(torch.arange(5)[:, None], 5) == 0
