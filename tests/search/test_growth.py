"""Embeddings of a corpus that has more shards: the old rows stay, and the index takes the new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_checkpoints
import torch
from samples import pair, write_shard
from tiny_runs import MODEL

from clipx import cli
from clipx.models.dual_encoder import DualEncoder
from clipx.search.embeddings import read_manifest
from clipx.search.query import Index

SHARD = 60
SETTINGS = ("--part-size", "30", "--precision", "fp32", "data.workers=0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    return small_checkpoints.save(folder, 1, model=DualEncoder(MODEL), model_json=MODEL)


def write(corpus: Path, *shards: int) -> None:
    for shard in shards:
        samples: dict[str, Any] = {}
        for n in range(SHARD):
            number = shard * SHARD + n
            samples[f"k{number}"] = {**pair(number), "txt": f"picture {number}"}
        write_shard(corpus / f"{shard}.tar", samples)


def embed(model: Path, corpus: Path, out: Path, *arguments: str) -> None:
    cli.main(["embed", str(model), str(corpus), "--out", str(out), *SETTINGS, *arguments])


def index(folder: Path, *arguments: str | Path) -> None:
    cli.main(["index", str(folder), *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        if path.suffix in (".npy", ".parquet"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write(tmp_path / "corpus", 0, 1, 2)
    return tmp_path / "corpus"


def test_more_shards_are_embedded_alone_and_all_files_are_those_of_a_new_folder(
    model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six parts become twelve, so that the old files get another name too."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    embed(model, corpus, out)
    times = {path.stem: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    write(corpus, 3, 4, 5)
    embed(model, corpus, out)
    assert "360 samples embedded in 12 parts" in capsys.readouterr().out
    embed(model, corpus, whole)
    assert contents(out) == contents(whole)
    for stem, time in times.items():
        kind, _, part = stem.rpartition("_")
        assert (out / kind / f"{kind}_0{part}.npy").stat().st_mtime_ns == time
    manifest = read_manifest(out)
    assert manifest.has_grown_from(read_manifest(whole))
    assert [past["num_embedded"] for past in manifest.earlier] == [180]
    embed(model, corpus, out)
    assert read_manifest(out) == manifest


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_takes_the_new_rows(
    model: Path,
    corpus: Path,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    embed(model, corpus, out)
    index(out, "--kind", kind, "--recall", "0.6")
    before = json.loads((out / "image_index.json").read_text())
    write(corpus, 3)
    embed(model, corpus, out)
    with pytest.raises(SystemExit):
        cli.main(["search", str(out), "picture 3"])
    assert "run `clipx index` again" in capsys.readouterr().err
    index(out, "--kind", kind, "--recall", "0.6")
    output = capsys.readouterr().out
    assert f"{kind}: new rows were added to the index" in output
    assert "built in" not in output
    about = json.loads((out / "image_index.json").read_text())
    assert (about["num_rows"], about["built_rows"]) == (240, 180)
    assert about["spec"]["cells"] == before["spec"]["cells"], "trained once"
    assert about["measured"]["recall"] >= 0.6
    opened = Index.open(out)
    for row in (0, 179, 180, 239):
        vector = opened.store.vectors([row])[0]
        assert row in {found for found, _ in opened.nearest(vector, 20)}
    # Rows that were added once count from the first.
    write(corpus, 4)
    embed(model, corpus, out)
    index(out, "--kind", kind, "--recall", "0.6")
    about = json.loads((out / "image_index.json").read_text())
    assert (about["num_rows"], about["built_rows"]) == (300, 180)
    write(corpus, 5, 6)
    embed(model, corpus, out)
    capsys.readouterr()
    index(out, "--kind", kind, "--recall", "0.6")
    is_added = "new rows were added" in capsys.readouterr().out
    assert is_added == (kind == "hnsw"), "cells of 180 rows are too few for 420"


def test_an_index_of_other_rows_is_built_anew(
    model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    embed(model, corpus, out)
    index(out, "--kind", "ivf", "--recall", "0.6")
    write(corpus, 3)
    embed(model, corpus, out)
    record = json.loads((out / "image_index.json").read_text())
    # Its rows are others than the embeddings', as if it had been built of another corpus.
    record["corpus_digest"] = "ab"
    (out / "image_index.json").write_text(json.dumps(record))
    capsys.readouterr()
    index(out, "--kind", "ivf", "--recall", "0.6")
    assert "ivf: built in" in capsys.readouterr().out


def test_removed_keys_stay_removed_in_a_corpus_that_grows(
    model: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed(model, corpus, out)
    (tmp_path / "keys").write_text("k7\nk200\n")  # the second is not there yet
    index(out, "--remove", tmp_path / "keys")
    write(corpus, 3)
    embed(model, corpus, out)
    assert Index.open(out).store.missing(range(240)) == [7, 200]


@pytest.mark.parametrize("change", ["an old shard", "between", "fewer", "another field"])
def test_a_corpus_that_has_not_grown_at_its_end_is_refused(
    model: Path,
    corpus: Path,
    tmp_path: Path,
    change: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    embed(model, corpus, out)
    before = contents(out)
    arguments = []
    if change == "an old shard":
        (corpus / "1.tar").unlink()
        write_shard(corpus / "1.tar", {f"x{n}": pair(n) for n in range(SHARD)})
        write(corpus, 3)
    elif change == "between":
        shutil.copy(corpus / "2.tar", corpus / "0b.tar")
    elif change == "fewer":
        (corpus / "2.tar").unlink()
    else:
        write(corpus, 3)
        arguments = ["data.caption_field=caption"]
    with pytest.raises(SystemExit):
        embed(model, corpus, out, *arguments)
    message = capsys.readouterr().err
    assert "has embeddings of something else" in message
    assert "A corpus may grow by shards that come after the others" in message
    assert contents(out) == before
    assert read_manifest(out).is_complete


def test_a_kill_while_it_grows_loses_nothing(model: Path, corpus: Path, tmp_path: Path) -> None:
    """After the manifest, in the middle of the new names, and with half of the new parts."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    embed(model, corpus, out)
    old = contents(out)
    write(corpus, 3, 4, 5)
    embed(model, corpus, whole)
    manifest = json.loads((whole / "manifest.json").read_text())
    manifest |= {"num_embedded": None, "num_bad": None}
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "img_emb/img_emb_3.npy").rename(out / "img_emb/img_emb_03.npy")
    (out / "metadata/metadata_4.parquet").rename(out / "metadata/metadata_04.parquet")
    shutil.copy(whole / "img_emb/img_emb_08.npy", out / "img_emb")
    embed(model, corpus, out)
    assert contents(out) == contents(whole)
    assert len(old) < len(contents(out))


def test_a_collection_of_qdrant_takes_the_new_rows(
    model: Path, corpus: Path, tmp_path: Path
) -> None:
    from qdrant_client import QdrantClient

    from clipx.progress import silent
    from clipx.search.qdrant_connection import QdrantConnection
    from clipx.search.qdrant_upload import QdrantUpload, UploadCounts

    connection = QdrantConnection(QdrantClient(":memory:"), "demo", "in memory")
    out = tmp_path / "out"
    embed(model, corpus, out)
    assert QdrantUpload(connection, out, "image").run(silent) == UploadCounts(180, 180, 180)
    write(corpus, 3)
    embed(model, corpus, out)
    counts = QdrantUpload(connection, out, "image").run(silent)
    assert counts.num_points == 240
