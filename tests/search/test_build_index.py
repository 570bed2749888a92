"""An index is chosen by what was measured, and belongs to its embeddings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_vector_index import QUERIES, ROWS, WIDTH, clustered

from clipx.search import build_index as module
from clipx.search.build_index import build_index
from clipx.search.embeddings import Manifest
from clipx.search.index_files import open_index, write_index
from clipx.search.vector_index import nearest_rows
from clipx.types import UserError

MANIFEST = Manifest(
    model="a model",
    model_digest="ab",
    embed_dim=WIDTH,
    image_size=16,
    scale=10.0,
    precision="float32",
    dtype="float32",
    data={"exif_orientation": True},
    corpus_digest="cd",
    part_size=10,
    num_parts=1,
    num_samples=3000,
    has_texts=False,
)


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_UP_TO", 500)


@pytest.mark.parametrize("own", [False, True], ids=["texts look for images", "images for others"])
def test_the_choice_meets_its_recall_on_other_queries(own: bool) -> None:
    queries = None if own else clustered(400, seed=3).numpy()
    chosen = build_index(ROWS.numpy(), queries, recall=0.9)
    assert chosen.measured.recall >= 0.9
    assert chosen.measured.interval[0] <= chosen.measured.recall <= chosen.measured.interval[1]
    met = [trial for trial in chosen.trials if trial.interval[0] >= 0.9]
    assert min(met, key=lambda trial: trial.milliseconds).spec == chosen.index.spec
    # what it says of unseen queries holds for a third set
    exact = nearest_rows(QUERIES, ROWS.numpy(), 10)[1]
    found = chosen.index.search(QUERIES, 10)[1]
    assert (exact[:, :, None] == found[:, None, :]).any(2).float().mean() > 0.8


def test_zeros_in_place_of_captions_are_no_queries() -> None:
    captions = clustered(400, seed=3).numpy()
    with_gaps = np.zeros((1200, captions.shape[1]), dtype=np.float32)
    with_gaps[2::3] = captions
    first = build_index(ROWS.numpy(), captions, kind="ivf", recall=0.9)
    second = build_index(ROWS.numpy(), with_gaps, kind="ivf", recall=0.9)
    assert [trial.recall for trial in first.trials] == [trial.recall for trial in second.trials]
    assert first.measured.interval == second.measured.interval


def test_few_rows_are_searched_exactly() -> None:
    chosen = build_index(ROWS[:500].numpy(), None)
    assert chosen.index.spec.kind == "exact"
    assert chosen.measured.recall == 1
    assert chosen.trials == []


def test_memory_and_recall_are_limits() -> None:
    notes: list[str] = []
    chosen = build_index(ROWS.numpy(), None, recall=0.5, max_bytes=150_000, note=notes.append)
    assert chosen.index.spec.kind == "ivfpq"
    assert any(note.startswith("hnsw: 1 MiB, more than --memory") for note in notes)
    with pytest.raises(UserError, match=r"--recall 0\.9: no index within the limits"):
        build_index(ROWS.numpy(), None, recall=0.9, max_bytes=1000)


def test_an_index_is_written_with_its_measurements_and_opened_again(tmp_path: Path) -> None:
    chosen = build_index(ROWS.numpy(), None, kind="hnsw", recall=0.8)
    write_index(tmp_path, "image", chosen, MANIFEST)
    about = json.loads((tmp_path / "image_index.json").read_text())
    assert about["measured"]["recall"] == chosen.measured.recall
    assert json.loads((tmp_path / "indices_paths.json").read_text()) == {
        tmp_path.name: str(tmp_path)
    }
    opened = open_index(tmp_path, "image", MANIFEST, ROWS.numpy())
    assert opened.spec == chosen.index.spec
    assert torch.equal(opened.search(QUERIES, 5)[1], chosen.index.search(QUERIES, 5)[1])
    for manifest, rows in (
        (replace(MANIFEST, model_digest="ef"), ROWS),
        (MANIFEST, ROWS[:2999]),
    ):
        with pytest.raises(UserError, match="belongs to 3,000 other embeddings"):
            open_index(tmp_path, "image", manifest, rows.numpy())
    (tmp_path / "image_index.json").write_text("{")
    with pytest.raises(UserError, match="run `clipx index` again"):
        open_index(tmp_path, "image", MANIFEST, ROWS.numpy())


def test_without_an_index_search_is_exact(tmp_path: Path) -> None:
    assert open_index(tmp_path, "image", MANIFEST, ROWS.numpy()).spec.kind == "exact"


def test_exact_takes_the_place_of_another_index(tmp_path: Path) -> None:
    write_index(tmp_path, "image", build_index(ROWS.numpy(), None, kind="hnsw"), MANIFEST)
    write_index(tmp_path, "image", build_index(ROWS.numpy(), None, kind="exact"), MANIFEST)
    assert not (tmp_path / "image.index").exists()
    assert open_index(tmp_path, "image", MANIFEST, ROWS.numpy()).spec.kind == "exact"


def test_one_vector_is_no_corpus() -> None:
    with pytest.raises(UserError, match="two vectors at least"):
        build_index(ROWS[:1].numpy(), None)
