"""Distances to the nearest neighbors, against a whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipx.search import unusual
from clipx.search.unusual import most_unusual, worst_captions
from clipx.search.vector_index import Kind, Spec, VectorIndex, spec_of
from clipx.types import UserError

WIDTH = 16


def unit(count: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(20, WIDTH, generator=generator)
    label = torch.randint(0, 20, (count,), generator=generator)
    spread = 0.2 + torch.rand(count, 1, generator=generator)
    rows = centers[label] + spread * torch.randn(count, WIDTH, generator=generator)
    return F.normalize(rows, dim=1).numpy()


ROWS = unit(600, 0)
OTHERS = unit(300, 1)


def ignore(count: int) -> None:
    pass


def expected(rows: np.ndarray, others: np.ndarray, k: int, *, same: bool) -> np.ndarray:
    scores = rows.astype(np.float64) @ others.astype(np.float64).T
    if same:
        np.fill_diagonal(scores, -np.inf)
    return 1 - np.sort(scores, axis=1)[:, -k:].mean(axis=1)


@pytest.mark.parametrize("k", [1, 5, 599])
@pytest.mark.parametrize("block", [64, 16_384])
def test_the_farthest_are_those_of_the_whole_matrix(
    k: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unusual, "BLOCK", block)
    index = VectorIndex(Spec("exact"), ROWS)
    found = most_unusual(ROWS, index, k=k, top=20, advance=ignore)
    distance = expected(ROWS, ROWS, k, same=True)
    assert [each.row for each in found] == np.argsort(-distance, kind="stable")[:20].tolist()
    np.testing.assert_allclose([each.score for each in found], np.sort(distance)[::-1][:20], 1e-4)


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
@pytest.mark.parametrize("same", [True, False])
def test_an_index_that_finds_little_gives_the_same_result(
    kind: Kind, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the least effort it misses most neighbors of unusual rows."""
    monkeypatch.setattr(unusual, "QUERIES", 50)
    rows = ROWS.astype(np.float16)
    others = rows if same else OTHERS.astype(np.float16)
    index = VectorIndex.build(spec_of(kind, len(others), WIDTH, effort=1), others)
    found = most_unusual(rows, index, k=5, top=20, advance=ignore)
    exact = VectorIndex(Spec("exact"), others)
    assert found == most_unusual(rows, exact, k=5, top=20, advance=ignore)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@pytest.mark.parametrize("same", [True, False])
def test_removed_rows_are_neither_ranked_nor_neighbors(kind: Kind, same: bool) -> None:
    removed = np.arange(0, 300, 2)
    kept = np.setdiff1d(np.arange(600), removed)
    others = ROWS if same else OTHERS
    index = VectorIndex.build(spec_of(kind, len(others), WIDTH, effort=1), others)
    found = most_unusual(ROWS, index.without(removed), k=5, top=600, advance=ignore, ranked=kept)
    alone = ROWS[kept]
    left = alone if same else np.delete(OTHERS, removed, axis=0)
    exact = VectorIndex(Spec("exact"), left)
    expected = most_unusual(alone, exact, k=5, top=600, advance=ignore)
    assert [each.row for each in found] == [kept[each.row] for each in expected]
    np.testing.assert_allclose(
        [each.score for each in found], [each.score for each in expected], 1e-5
    )


def test_a_row_is_not_its_own_neighbor_but_its_repeat_is() -> None:
    rows = np.concatenate([ROWS, ROWS[:1]])
    index = VectorIndex(Spec("exact"), rows)
    found = most_unusual(rows, index, k=1, top=len(rows), advance=ignore)
    nearest = {each.row: each.score for each in found}
    assert nearest[0] == pytest.approx(0, abs=1e-6)
    assert nearest[600] == pytest.approx(0, abs=1e-6)
    assert min(score for row, score in nearest.items() if row not in (0, 600)) > 1e-4


@pytest.mark.parametrize(
    ("k", "top", "message"),
    [(0, 5, r"-k 0 is not in 1 \.\.\. 599"), (600, 5, "-k 600"), (5, 0, "--top 0 is below 1")],
)
def test_numbers_out_of_range_are_refused(k: int, top: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        most_unusual(ROWS, VectorIndex(Spec("exact"), ROWS), k=k, top=top, advance=ignore)


def test_captions_that_fit_least_come_first_and_missing_ones_never() -> None:
    texts = ROWS.copy()
    texts[3] = -ROWS[3]
    texts[7] = OTHERS[7]
    texts[9] = 0  # no caption
    found = worst_captions(ROWS, texts, top=600)
    assert len(found) == 599
    assert [each.row for each in found[:2]] == [3, 7]
    assert found[0].score == pytest.approx(-1, abs=1e-6)
    assert found[2].score == pytest.approx(1, abs=1e-6)
    found = worst_captions(ROWS, texts, top=2, ranked=np.arange(7, 600))
    assert found[0].row == 7
    assert found[1].row > 9
    assert 9 not in {each.row for each in found}
