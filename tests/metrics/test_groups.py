"""Detection and the health of embeddings against scikit-learn and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F

from clipx import metrics
from clipx.metrics import embedding


@settings(deadline=None, max_examples=80)
@given(pairs=st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60))
def test_auroc_is_scikit_learns_ties_and_all(pairs: list[tuple[int, bool]]) -> None:
    score, positive = (torch.tensor(column) for column in zip(*pairs, strict=True))
    if positive.all() or not positive.any():
        return
    expected = sklearn_metrics.roc_auc_score(positive, score)
    assert metrics.auroc(score.float(), positive) == pytest.approx(expected, rel=1e-14)


def test_nearest_neighbors_by_blocks_are_those_of_the_whole_matrix() -> None:
    rows = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    queries = rows[:30]
    whole = (queries @ rows.T).topk(3)
    for block in (7, 50):
        values, indices = metrics.nearest_neighbors(queries, rows, 3, block=block)
        assert torch.equal(indices, whole.indices)
        torch.testing.assert_close(values, whole.values)


def test_alignment_and_gap_by_hand() -> None:
    image = torch.tensor([[1.0, 0], [1, 0]])
    text = torch.tensor([[0.0, 1], [1, 0]])
    assert embedding.squared_distances(image, text).tolist() == [2, 0]  # alignment 1
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
