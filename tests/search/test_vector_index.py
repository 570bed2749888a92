"""Nearest rows: exactly, and by each kind of index beside it."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipx.search import exact, vector_index
from clipx.search.vector_index import Kind, Spec, VectorIndex, nearest_rows, spec_of
from clipx.types import UserError

WIDTH = 32


def clustered(count: int, *, seed: int = 0) -> Tensor:
    """Unit rows around 50 points, as embeddings of classes are."""
    centers = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 50, (count,), generator=generator)
    noise = torch.randn(count, WIDTH, generator=generator)
    return F.normalize(centers[label] + 0.5 * noise, dim=-1)


ROWS = clustered(3000)
QUERIES = clustered(40, seed=1)


@pytest.mark.parametrize("block", [7, 1000, 16_384])
def test_exact_search_is_the_whole_matrix(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK", block)
    scores, rows = nearest_rows(QUERIES, ROWS.numpy(), 12)
    expected = (QUERIES.double() @ ROWS.double().T).sort(dim=1, descending=True)
    assert torch.equal(rows, expected.indices[:, :12])
    torch.testing.assert_close(scores, expected.values[:, :12].float())


@pytest.mark.parametrize("block", [3, 100])
def test_of_equal_rows_the_first_comes_first(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK", block)
    rows = ROWS[:5].repeat(8, 1)
    _, found = nearest_rows(ROWS[:5], rows.numpy(), 4)
    expected = torch.arange(5)[:, None] + 5 * torch.arange(4)
    assert torch.equal(found, expected)


def test_fewer_rows_than_asked_for_are_filled_up() -> None:
    scores, rows = nearest_rows(QUERIES[:2], ROWS[:3].numpy(), 5)
    assert rows[:, 3:].eq(-1).all()
    assert scores[:, 3:].eq(-torch.inf).all()
    assert rows[:, :3].sort(dim=1).values.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("block", [7, 16_384])
def test_among_some_rows_it_finds_what_it_finds_in_their_copy(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK", block)
    rows = ROWS.numpy().astype(np.float16)
    among = np.flatnonzero(np.random.default_rng(0).random(len(rows)) < 0.1)
    scores, found = nearest_rows(QUERIES, rows, 20, among=among)
    expected_scores, places = nearest_rows(QUERIES, rows[among], 20)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(found, torch.from_numpy(among)[places])
    scores, found = nearest_rows(QUERIES, rows, 5, among=among[:3])
    assert set(found[0].tolist()) == {*among[:3].tolist(), -1}
    assert nearest_rows(QUERIES, rows, 5, among=among[:0])[1].eq(-1).all()


def test_rows_are_read_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that many rows pass does not copy the embeddings."""
    monkeypatch.setattr(exact, "BLOCK", 1000)
    rows = np.tile(ROWS.numpy(), (20, 1))
    tracemalloc.start()
    try:
        nearest_rows(QUERIES[:1], rows, 10, among=np.arange(len(rows)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows.nbytes / 5


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_an_index_finds_what_exact_search_finds(kind: Kind, tmp_path: Path) -> None:
    """With the most effort, and after it was written and mapped again, from float16 rows too."""
    rows = ROWS.numpy().astype(np.float16)
    effort = vector_index.EFFORTS[kind][-1]
    spec = spec_of(kind, len(rows), WIDTH, effort=effort)
    built = VectorIndex.build(spec, rows)
    built.write(tmp_path / "index")
    opened = VectorIndex.open(tmp_path / "index", spec, rows)
    scores, found = opened.search(QUERIES, 10)
    assert torch.equal(found, built.search(QUERIES, 10)[1])
    exact_scores, exact = nearest_rows(QUERIES, rows, 10)
    hits = (exact[:, :, None] == found[:, None, :]).any(2)
    assert hits.float().mean() > 0.95
    assert torch.equal(scores, scores.sort(dim=1, descending=True).values)
    first = found[:, 0] == exact[:, 0]
    torch.testing.assert_close(scores[first, 0], exact_scores[first, 0], rtol=1e-3, atol=1e-3)


def test_cells_of_another_index_serve_as_well_and_outlive_it() -> None:
    rows = ROWS.numpy()
    spec = spec_of("ivfpq", len(rows), WIDTH)
    other = VectorIndex.build(spec_of("ivf", len(rows), WIDTH), rows)
    shared = VectorIndex.build(spec, rows, other=other).with_effort(4)
    del other
    gc.collect()
    alone = VectorIndex.build(spec, rows).with_effort(4)
    assert torch.equal(shared.search(QUERIES, 10)[1], alone.search(QUERIES, 10)[1])


def test_more_effort_finds_more() -> None:
    index = VectorIndex.build(spec_of("ivf", len(ROWS), WIDTH), ROWS.numpy())
    exact = nearest_rows(QUERIES, ROWS.numpy(), 10)[1]
    recalls = []
    for effort in (1, 4, 64):
        found = index.with_effort(effort).search(QUERIES, 10)[1]
        recalls.append((exact[:, :, None] == found[:, None, :]).any(2).float().mean().item())
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[-1]


def test_a_long_list_is_filled_whatever_the_effort() -> None:
    index = VectorIndex.build(spec_of("ivf", len(ROWS), WIDTH, effort=1), ROWS.numpy())
    _, found = index.search(QUERIES, 1000)
    assert (found >= 0).float().mean() > 0.9


def test_an_index_of_other_rows_is_refused(tmp_path: Path) -> None:
    spec = spec_of("hnsw", 100, WIDTH, effort=16)
    VectorIndex.build(spec, ROWS[:100].numpy()).write(tmp_path / "index")
    with pytest.raises(UserError, match="has 100 vectors of 32 dimensions, the embeddings have 99"):
        VectorIndex.open(tmp_path / "index", spec, ROWS[:99].numpy())
    (tmp_path / "index").write_bytes(b"half an index")
    with pytest.raises(UserError, match="cannot be read"):
        VectorIndex.open(tmp_path / "index", spec, ROWS[:100].numpy())


def test_parameters_fit_the_matrix() -> None:
    assert spec_of("ivf", 1_000_000, 512).cells == 4000
    assert spec_of("ivf", 1000, 512).cells == 25, "39 rows to train a cell"
    assert spec_of("ivfpq", 100_000, 512).code_bytes == 128
    assert spec_of("ivfpq", 100_000, 30).code_bytes == 6, "a divisor"
    assert spec_of("hnsw", 10, 8) == Spec("hnsw")
    with pytest.raises(UserError, match="needs 256 vectors"):
        spec_of("ivfpq", 255, 512)
