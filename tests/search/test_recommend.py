"""Recommendation by liked and disliked examples, against the definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from samples import picture

from clipx.search import recommend
from clipx.search.query import Index
from clipx.search.recommend import average_vector, best_scores
from clipx.types import UserError


def unit(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_average_moves_away_from_what_is_disliked() -> None:
    likes = unit(3, 0)
    dislikes = unit(2, 1)
    expected = 2 * likes.mean(axis=0) - dislikes.mean(axis=0)
    np.testing.assert_allclose(average_vector(likes, dislikes), expected, rtol=1e-5)
    np.testing.assert_allclose(average_vector(likes, dislikes[:0]), likes.mean(axis=0))
    with pytest.raises(UserError, match="needs an example to like"):
        average_vector(likes[:0], dislikes)
    with pytest.raises(UserError, match="cancel each other out"):
        average_vector(likes[:1], 2 * likes[:1])


@pytest.mark.parametrize("block", [7, 65_536])
def test_the_best_score_is_that_of_the_nearest_example(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dislike that is nearer than all likes counts by its negative square."""
    monkeypatch.setattr(recommend, "BLOCK", block)
    rows = unit(50, 2)
    likes = unit(3, 3)
    dislikes = unit(4, 4)
    expected = []
    for row in rows:
        like = max(float(row @ example) for example in likes)
        dislike = max(float(row @ example) for example in dislikes)
        expected.append(like if like > dislike else -dislike * dislike)
    assert min(expected) < 0 < max(expected)
    np.testing.assert_allclose(best_scores(rows, likes, dislikes), expected, atol=1e-6)


def test_without_likes_the_best_are_far_from_all_dislikes() -> None:
    rows = unit(50, 2)
    dislikes = unit(2, 4)
    nearest = (rows @ dislikes.T).max(axis=1)
    scores = best_scores(rows, dislikes[:0], dislikes)
    np.testing.assert_allclose(scores, -(nearest**2), atol=1e-6)


def keys(index: Index, **query: object) -> list[str]:
    return [hit.metadata["key"] for hit in index.recommend(**query)]  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["average", "best"])
def test_the_examples_themselves_are_no_results(collected: Index, strategy: str) -> None:
    row = collected.row_of("d03")
    found = keys(collected, likes=[row], k=21, strategy=strategy)
    assert "d03" not in found
    assert {"r00", "r01"} == {*found[:2]}, "other samples with the same picture are results"
    assert len(found) == 20
    # A picture file may be that of any sample with its pixels.
    found = keys(collected, likes=[picture(3, (32, 32))], k=21, strategy=strategy)
    assert not {"d03", "r00"} & {*found}


def test_average_is_a_search_with_the_average(collected: Index) -> None:
    rows = [collected.row_of(key) for key in ("d01", "d02", "d04")]
    hits = collected.recommend(likes=rows[:2], dislikes=rows[2:], k=5)
    vectors = np.asarray(collected.rows, dtype=np.float32)
    query = 2 * vectors[rows[:2]].mean(axis=0) - vectors[rows[2]]
    scores = vectors @ (query / np.linalg.norm(query))
    scores[rows] = -np.inf
    assert [hit.row for hit in hits] == np.argsort(-scores, kind="stable")[:5].tolist()
    assert hits[0].score == pytest.approx(float(scores.max()), abs=1e-5)


def test_best_is_the_order_of_the_best_scores(collected: Index) -> None:
    rows = [collected.row_of(key) for key in ("d01", "d02", "d04")]
    hits = collected.recommend(likes=rows[:2], dislikes=rows[2:], k=18, strategy="best")
    vectors = np.asarray(collected.rows, dtype=np.float32)
    scores = best_scores(vectors, vectors[rows[:2]], vectors[rows[2:]])
    scores[rows] = -np.inf
    assert [hit.row for hit in hits] == np.argsort(-scores, kind="stable")[:18].tolist()


@pytest.mark.parametrize("strategy", ["average", "best"])
def test_a_condition_holds_for_all_results(collected: Index, strategy: str) -> None:
    likes = [collected.row_of("d03")]
    found = keys(collected, likes=likes, k=30, where="shop = red", strategy=strategy)
    assert sorted(found) == ["d01", "d07", "d09", "d11", "d13", "d15", "d17"]


def test_what_cannot_be_meant_is_refused(collected: Index, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs an example: a picture, or a sample"):
        collected.recommend()
    with pytest.raises(UserError, match="k 0 is below 1"):
        collected.recommend(likes=[0], k=0)
    with pytest.raises(UserError, match="has rows 0 to 20, not 21"):
        collected.recommend(likes=[21])
    with pytest.raises(UserError, match="has no sample with the key 'x'"):
        collected.row_of("x")
    (tmp_path / "page.png").write_text("<!doctype html><title>Not found</title>")
    with pytest.raises(UserError, match=r"image .*page\.png: "):
        collected.recommend(likes=[tmp_path / "page.png"])
    with pytest.raises(UserError, match=r"gone\.png"):
        collected.recommend(likes=[tmp_path / "gone.png"])
