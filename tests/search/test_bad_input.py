"""Damaged files, full disks and queries that cannot be used: one message, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_checkpoints
import torch
from PIL import Image
from samples import pair, png, write_shard
from tiny_runs import MODEL

from clipx import cli
from clipx.models.dual_encoder import DualEncoder
from clipx.search.query import Index

NUM_SAMPLES = 30
HTML = b"<!doctype html><html><body>404 Not Found</body></html>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    return small_checkpoints.save(folder, 1, model=DualEncoder(MODEL), model_json=MODEL)


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of 30 samples in two parts."""
    root = tmp_path_factory.mktemp("made")
    samples: dict[str, Any] = {f"k{n:02d}": pair(n) for n in range(NUM_SAMPLES)}
    write_shard(root / "corpus/0.tar", samples)
    settings = ["--part-size", "20", "--precision", "fp32", "--dtype", "float32"]
    cli.main(["embed", str(model), str(root / "corpus"), "--out", str(root / "out"), *settings])
    return root / "out"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "out")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, arguments)])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("clipx: ")
    assert message.count("\n") == 1
    return message


def change_rows(change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "img_emb/img_emb_1.npy"
        rows = np.load(path)
        np.save(path, change(rows))

    return damage


def with_value(value: float) -> Callable[[Path], None]:
    def change(rows: np.ndarray) -> np.ndarray:
        rows[3, 5] = value
        return rows

    return change_rows(change)


def drop_a_row(folder: Path) -> None:
    path = folder / "metadata/metadata_1.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def shift_a_row(folder: Path) -> None:
    """As many rows in all, each with the metadata of its neighbor."""
    first, second = folder / "metadata/metadata_0.parquet", folder / "metadata/metadata_1.parquet"
    tables = pq.read_table(first), pq.read_table(second)
    pq.write_table(tables[0].slice(0, 19), first)
    import pyarrow as pa

    pq.write_table(pa.concat_tables([tables[0].slice(19), tables[1]]), second)


def narrow(folder: Path) -> None:
    for path in (folder / "img_emb").iterdir():
        np.save(path, np.load(path)[:, :7])


DAMAGES = {
    "nan": (with_value(float("nan")), "img_emb_1.npy has numbers that are not finite"),
    "infinite": (with_value(-np.inf), "img_emb_1.npy has numbers that are not finite"),
    "large": (with_value(3.0), "img_emb_1.npy has numbers that are not finite or above 1"),
    "width": (change_rows(lambda rows: rows[:, :7]), "img_emb_1.npy has shape (10, 7)"),
    "all widths": (narrow, "has embeddings of 7 dimensions, and its manifest.json says"),
    "vector": (change_rows(lambda rows: rows[0]), "img_emb_1.npy has shape"),
    "row": (drop_a_row, "img_emb_1.npy has 10 embeddings and"),
    "shifted": (shift_a_row, "img_emb_0.npy has 20 embeddings and"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_embeddings_are_named(
    folder: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = DAMAGES[damage]
    change(folder)
    commands: list[list[Any]] = [["search", folder, "a car"]]
    if damage == "nan":  # all read embeddings by one function
        commands += [
            ["index", folder, "--kind", "hnsw"],
            ["index", folder, "--to", "http://127.0.0.1:9/demo"],
            ["serve", folder, "--port", "0"],
        ]
    for command in commands:
        said = refusal(capsys, *command)
        if "--to" not in command:
            assert message in said
    assert not (folder / "image.index").exists()


def test_the_remedy_for_a_damaged_file_works(model: Path, folder: Path, made: Path) -> None:
    """It is deleted and embedded again, and the others stay."""
    (folder / "img_emb/img_emb_1.npy").unlink()
    settings = ["--part-size", "20", "--precision", "fp32", "--dtype", "float32"]
    corpus = made.parent / "corpus"
    cli.main(["embed", str(model), str(corpus), "--out", str(folder), *settings])
    name = "img_emb/img_emb_1.npy"
    assert (folder / name).read_bytes() == (made / name).read_bytes()


def test_an_empty_folder_is_no_embeddings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("index", "search", "serve"):
        arguments = [verb, tmp_path] + (["a car"] if verb == "search" else [])
        if verb == "serve":
            arguments += ["--port", "0"]
        assert "has no manifest.json: give the --out folder" in refusal(capsys, *arguments)


def test_a_corpus_without_a_good_picture_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "page.png").write_bytes(HTML)
    out = tmp_path / "out"
    cli.main(["embed", str(model), str(pictures), "--out", str(out), "--precision", "fp32"])
    assert "0 samples embedded in 1 parts, 1 could not be" in capsys.readouterr().out
    assert "needs two vectors at least, not 0" in refusal(capsys, "index", out)
    assert "none of the 1 samples" in refusal(capsys, "search", out, "a car")


def test_pages_and_large_pictures_are_put_in_quarantine(model: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "page.png").write_bytes(HTML)
    (pictures / "good.png").write_bytes(png(1))
    Image.new("1", (20_000, 10_000)).save(pictures / "large.png")
    out = tmp_path / "out"
    cli.main(["embed", str(model), str(pictures), "--out", str(out), "--precision", "fp32"])
    lines = (out / "quarantine/quarantine_0.jsonl").read_text().splitlines()
    reasons = {json.loads(line)["key"]: json.loads(line) for line in lines}
    assert set(reasons) == {"page", "large"}
    assert "20000 x 10000" in json.dumps(reasons["large"])


def test_queries_that_are_no_picture_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.png").write_bytes(HTML)
    assert "page.png" in refusal(capsys, "search", folder, "--image", tmp_path / "page.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    message = refusal(capsys, "search", folder, "--image", tmp_path / "large.png")
    assert "20000 x 10000" in message
    message = refusal(capsys, "search", folder, "--image", tmp_path / "none.png")
    assert "none.png" in message


def test_a_long_text_is_cut_as_the_model_cuts_captions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["search", str(folder), "red " * 10_000, "-k", "1", "--json"])
    long = json.loads(capsys.readouterr().out)
    cli.main(["search", str(folder), "red " * 100, "-k", "1", "--json"])
    assert long == json.loads(capsys.readouterr().out)


def test_search_goes_on_without_the_pictures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["data"]["shards"] = "/nowhere"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    cli.main(["search", str(folder), "picture", "-k", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["key"].startswith("k")


@pytest.mark.parametrize("share", [0.99, 0.5, 0.01])
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_truncated_index_is_refused_and_built_again(
    folder: Path, kind: str, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", str(folder), "--kind", kind, "--recall", "0.3"]
    cli.main(command)
    path = folder / "image.index"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message = refusal(capsys, "search", folder, "a car")
    assert f"{path} cannot be read" in message
    assert "faiss::" not in message
    assert "run `clipx index` again" in message
    cli.main(["search", str(folder), "a car", "--exact"])
    cli.main(command)
    assert path.read_bytes() == content


def test_an_index_of_another_model_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["index", str(folder), "--kind", "hnsw"])
    about = json.loads((folder / "image_index.json").read_text())
    (folder / "image_index.json").write_text(json.dumps(about | {"model_digest": "ab"}))
    assert "or to those of another model" in refusal(capsys, "search", folder, "a car")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_nothing_half_written(
    folder: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = shutil.copytree(folder, small_disk / "out")
    (tmp_path / "keys").write_text("k03\n")
    cli.main(["index", str(full), "--remove", str(tmp_path / "keys")])
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(2**18))
    before = {path.name: path.read_bytes() for path in full.rglob("*") if path.is_file()}
    for arguments in (["--kind", "hnsw"], ["--remove", str(tmp_path / "keys")]):
        message = refusal(capsys, "index", full, *arguments)
        assert "make room" in message
        after = {path.name: path.read_bytes() for path in full.rglob("*") if path.is_file()}
        assert after == before
    cli.main(["search", str(full), "a car"])
    (small_disk / "filler").unlink()
    cli.main(["index", str(full), "--kind", "hnsw"])
    assert Index.open(full).store.kind == "hnsw"
