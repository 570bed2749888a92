"""The command that draws a map, and the routes that answer it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import served
from fastapi.testclient import TestClient
from layouts import replace_umap

from clipx import cli
from clipx.search.embedding_map import EmbeddingMap, map_file, open_map, write_map
from clipx.search.embeddings import read_manifest
from clipx.search.query import Index
from clipx.search.regions import RegionLabel

LABELS = [RegionLabel("a cat", 0.5, -0.125, 0, 90), RegionLabel("ein Käfer", 0, 0, 1, 7)]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of this file alone: it adds maps to them."""
    return served.embed(tmp_path_factory.mktemp("map"))


@pytest.fixture
def drawn(embedded: Path) -> EmbeddingMap:
    """A map beside the embeddings."""
    points = np.random.default_rng(0).uniform(-1, 1, (served.NUM_SAMPLES, 2)).astype(np.float32)
    points[0] = [-1, 1]
    drawn = EmbeddingMap(points, LABELS)
    write_map(embedded, drawn, read_manifest(embedded))
    return drawn


@pytest.fixture
def client(embedded: Path) -> Iterator[TestClient]:
    with served.client(embedded) as client:
        yield client


def test_points_are_little_endian_pairs_of_16_bits(drawn: EmbeddingMap, client: TestClient) -> None:
    response = client.get("/api/map/drawings")
    assert response.headers["content-type"] == "application/octet-stream"
    steps = np.frombuffer(response.content, "<u2").reshape(-1, 2)
    assert steps[0].tolist() == [0, 65534]
    assert np.abs(steps / 65535 * 2 - 1 - drawn.points).max() <= 2 / 65535 + 1e-6


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_labels_are_json(drawn: EmbeddingMap, client: TestClient, encoding: str) -> None:
    response = client.get("/api/map/drawings/labels", headers={"Accept-Encoding": encoding})
    assert response.headers.get("content-encoding", "identity") == encoding
    first, second = response.json()["labels"]
    assert first == {"text": "a cat", "x": 0.5, "y": -0.125, "level": 0, "num_rows": 90}
    assert second["text"] == "ein Käfer"


def test_a_map_that_the_client_has_is_not_sent_again(
    embedded: Path, drawn: EmbeddingMap, client: TestClient
) -> None:
    for path in ("/api/map/drawings", "/api/map/drawings/labels"):
        etag = client.get(path).headers["etag"]
        again = client.get(path, headers={"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")
    # A new one is, without a new start of the server.
    moved = EmbeddingMap(-drawn.points, LABELS)
    write_map(embedded, moved, read_manifest(embedded))
    response = client.get("/api/map/drawings", headers={"If-None-Match": etag})
    assert response.status_code == 200
    assert np.frombuffer(response.content, "<u2")[0] == 65534


def test_removed_pictures_have_no_place(
    embedded: Path, drawn: EmbeddingMap, tmp_path: Path
) -> None:
    removed = tmp_path / "removed.txt"
    removed.write_text("k07\n")
    cli.main(["index", str(embedded), "--remove", str(removed)])
    try:
        with served.client(embedded) as client:
            points = client.get("/api/map/drawings").content
    finally:
        cli.main(["index", str(embedded), "--restore"])
    is_removed = (np.frombuffer(points, "<u2").reshape(-1, 2) == 65535).all(axis=1)
    assert np.flatnonzero(is_removed).tolist() == [7]


def test_without_a_map_the_answer_has_the_remedy(
    embedded: Path, client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    map_file(embedded).unlink(missing_ok=True)
    for path in ("/api/map/drawings", "/api/map/drawings/labels"):
        response = client.get(path)
        assert response.status_code == 404
        assert "has no map; run `clipx index DIR --map`" in response.json()["error"]
    (described,) = client.get("/api/indices").json()["indices"]
    assert described["has_map"] is False
    assert client.get("/api/map/other").status_code == 404

    map_file(embedded).write_bytes(b"damaged")
    response = client.get("/api/map/drawings")
    assert response.status_code == 404
    assert "cannot be used; run `clipx index DIR --map`" in response.json()["error"]
    assert str(embedded) not in response.text, "paths are for the log"
    assert f"{embedded}/map.npz cannot be read" in capsys.readouterr().err


def test_collections_say_whether_they_have_a_map(drawn: EmbeddingMap, client: TestClient) -> None:
    (described,) = client.get("/api/indices").json()["indices"]
    assert described["has_map"] is True


@pytest.mark.parametrize("layout", ["plane", pytest.param("umap", marks=pytest.mark.slow)])
def test_the_command_draws_the_same_map_again_and_leaves_the_index(
    embedded: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
) -> None:
    if layout == "plane":
        replace_umap(monkeypatch)
    cli.main(["index", str(embedded)])
    about = (embedded / "image_index.json").read_bytes()
    cli.main(["index", str(embedded), "--map"])
    assert "90 points in" in capsys.readouterr().out
    first = open_map(embedded, read_manifest(embedded))
    assert first.points.shape == (served.NUM_SAMPLES, 2)
    # Captions are `picture 7`, so that all have the one word that there is.
    assert first.labels == []
    names = tmp_path / "names.txt"
    names.write_text("a cat\na red car\n")
    cli.main(["index", str(embedded), "--map", "--names", str(names)])
    second = open_map(embedded, read_manifest(embedded))
    assert np.array_equal(first.points, second.points)
    assert {label.text for label in second.labels} <= {"a cat", "a red car"}
    assert second.labels
    assert (embedded / "image_index.json").read_bytes() == about
    assert Index.open(embedded).vectors.spec.kind == "exact"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--names", "imagenet"], "--names is for the map; give --map too"),
        (["--model", "m"], "--model is for the map"),
        (["--map", "--kind", "hnsw"], "--kind hnsw is for an index"),
        (["--map", "--of", "text"], "--of text is for an index"),
        (["--map", "--names", "nothing"], "--names nothing is neither a file"),
    ],
)
def test_options_without_effect_are_refused(
    embedded: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["index", str(embedded), *options])
    assert message in capsys.readouterr().err
