"""A layout in two dimensions keeps neighborhoods, and exists for any rows."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from layouts import replace_umap

from clipx.progress import silent
from clipx.search.projection import draw_in, normalize, project
from clipx.types import UserError

WIDTH = 16
NUM_GROUPS = 3
GROUP = 40


def groups(seed: int = 0) -> np.ndarray:
    """(120, 16) unit rows in three groups, one after the other."""
    generator = np.random.default_rng(seed)
    centers = np.repeat(np.eye(NUM_GROUPS, WIDTH), GROUP, axis=0)
    rows = centers + 0.05 * generator.normal(size=centers.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=["plane", pytest.param("umap", marks=pytest.mark.slow)])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is around UMAP, by another layout; with UMAP itself in the slow tests."""
    if request.param == "plane":
        replace_umap(monkeypatch)


@pytest.mark.usefixtures("layout")
def test_groups_stay_together_and_a_seed_gives_the_same_map() -> None:
    points = project(groups(), progress=silent)
    assert points.dtype == np.float32
    assert np.abs(points).max() == pytest.approx(1)
    group = np.repeat(np.arange(NUM_GROUPS), GROUP)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(axis=1)] == group).all()
    assert np.array_equal(points, project(groups(), progress=silent))


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 16])
def test_few_rows_have_a_map(count: int) -> None:
    points = project(groups()[:count], progress=silent)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    assert np.abs(points).max() <= 1
    assert len(np.unique(points, axis=0)) == count


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("copies", [1, 30, 120])
def test_equal_rows_share_a_place(copies: int) -> None:
    rows = groups()
    rows[:copies] = rows[0]
    points = project(rows.astype(np.float16), progress=silent)
    assert np.isfinite(points).all()
    assert len(np.unique(points[:copies], axis=0)) == 1
    assert len(np.unique(points, axis=0)) == 120 - copies + 1


def test_rows_that_are_not_finite_are_refused() -> None:
    rows = groups()
    rows[[7, 90], 3] = np.nan
    with pytest.raises(UserError, match=r"2 embeddings are not finite, first that of row 7;"):
        project(rows, progress=silent)


def test_no_rows_and_no_umap_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no embeddings to draw a map of"):
        project(groups()[:0], progress=silent)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"pip install 'clipx-train\[search,viz\]'"):
        project(groups(), progress=silent)


def test_turning_mirroring_moving_and_scaling_change_nothing() -> None:
    generator = np.random.default_rng(1)
    points = generator.gamma(2, size=(500, 2)) * [3, 1]  # with a longer tail on one side
    first = normalize(points)
    assert np.abs(first).max() == 1
    assert first[:, 0].std() > first[:, 1].std()
    angle = 1.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for change in (turn, turn @ np.diag([1, -1])):
        assert np.allclose(normalize(7 * points @ change + [5, -9]), first, atol=1e-5)


def test_far_islands_are_drawn_in_and_stay_outside() -> None:
    generator = np.random.default_rng(2)
    points = generator.normal(size=(1000, 2))
    points[:3] = [[50, 0], [90, 0], [0, -70]]
    drawn = draw_in(points)
    inside = np.linalg.norm(points, axis=1) < 1
    assert np.allclose(drawn[inside], points[inside])
    largest = np.linalg.norm(drawn[3:], axis=1).max()
    assert np.linalg.norm(drawn[:3], axis=1).max() < 1.5 * largest
    assert drawn[1, 0] >= drawn[0, 0] >= drawn[3:, 0].max()
    # What is farther in its direction stays farther.
    middle = np.median(points, axis=0)
    assert (np.sign(drawn - middle) == np.sign(points - middle)).all()
