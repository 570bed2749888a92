"""Embeddings of a corpus on disk: the rows of the model, with the metadata of their samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_checkpoints
import torch
from PIL import Image
from samples import encoded, jpeg, pair, picture, png, write_shard
from tiny_runs import MODEL

from clipx import cli
from clipx.embed import Encoder, load
from clipx.models.dual_encoder import DualEncoder
from clipx.search.corpus_pictures import CorpusPictures
from clipx.search.embeddings import read_manifest
from clipx.search.query import Index
from clipx.search.vectors import map_files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    return small_checkpoints.save(folder, 1, model=DualEncoder(MODEL), model_json=MODEL)


def embed(*arguments: Any) -> None:
    cli.main(["embed", *map(str, arguments), "--precision", "fp32"])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    with pytest.raises(SystemExit) as end:
        embed(*arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


def table(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((folder / "metadata").iterdir()):
        rows += pq.read_table(path).to_pylist()
    return rows


def rows_of(folder: Path, kind: str) -> np.ndarray:
    return np.concatenate(map_files(sorted((folder / kind).iterdir())).parts)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards: 13 good samples, one that is no picture, one without a caption."""
    samples: dict[str, Any] = {f"k{n:02d}": pair(n) for n in range(8)}
    samples["k03"] = {"jpg": b"\xff\xd8\xff no picture", "txt": "broken"}
    write_shard(tmp_path / "corpus/0.tar", samples)
    samples = {f"m{n:02d}": pair(n + 10) for n in range(6)}
    samples["m05"] = {"png": png(99), "json": {"url": "https://a/b.png", "width": 640, "n": [1]}}
    write_shard(tmp_path / "corpus/1.tar", samples)
    return tmp_path / "corpus"


def test_rows_are_those_of_the_model_in_the_order_of_the_corpus(
    model: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed(model, shards, "--out", out, "--part-size", 5, "--dtype", "float32", "data.workers=0")
    names = [path.name for path in sorted((out / "img_emb").iterdir())]
    assert names == [f"img_emb_{part}.npy" for part in range(4)], "of 5, 3, 5 and 1 samples"
    rows = table(out)
    keys = [f"k{n:02d}" for n in range(8) if n != 3] + [f"m{n:02d}" for n in range(6)]
    assert [row["key"] for row in rows] == keys
    encoder: Encoder = load(model)
    image = rows_of(out, "img_emb")
    text = rows_of(out, "text_emb")
    assert image.dtype == np.float32
    for number, row in enumerate(rows):
        seed = int(row["key"][1:]) + (10 if row["key"][0] == "m" else 0)
        content = png(99) if row["key"] == "m05" else (jpeg(seed) if seed % 2 else png(seed))
        path = tmp_path / "picture"
        path.write_bytes(content)
        torch.testing.assert_close(torch.from_numpy(image[number]), encoder.encode_image(path)[0])
        if row["caption"] is None:
            assert not text[number].any(), "zeros, which no query finds"
        else:
            expected = encoder.encode_text(row["caption"])[0]
            torch.testing.assert_close(torch.from_numpy(text[number]), expected)
    last = rows[-1]
    assert (last["key"], last["caption"], last["width"], last["height"]) == ("m05", None, 20, 16)
    assert last["url"] == "https://a/b.png"
    assert (last["own_width"], last["n"]) == (640, "[1]")
    assert (last["source_shard"], last["sample"]) == (1, 5)
    (bad,) = map(json.loads, (out / "quarantine/quarantine_0.jsonl").read_text().splitlines())
    assert (bad["key"], bad["stage"]) == ("k03", "image")
    manifest = read_manifest(out)
    assert (manifest.num_samples, manifest.num_embedded, manifest.num_bad) == (14, 13, 1)
    assert manifest.has_texts


def content_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_workers_and_tasks_change_no_byte(model: Path, shards: Path, tmp_path: Path) -> None:
    one, tasks = tmp_path / "one", tmp_path / "tasks"
    embed(model, shards, "--out", one, "--part-size", 5, "data.workers=0")
    for task in ("2/3", "1/3", "3/3"):
        assert not (tasks / "manifest.json").exists() or not read_manifest(tasks).is_complete
        embed(model, shards, "--out", tasks, "--part-size", 5, "--task", task, "data.workers=1")
    assert content_of(one) == content_of(tasks)
    assert rows_of(one, "img_emb").dtype == np.float16


def test_a_part_that_is_missing_is_embedded_again(
    model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = (model, shards, "--out", out, "--part-size", 5, "data.workers=0")
    embed(*arguments)
    before = content_of(out)
    times = {path: path.stat().st_mtime_ns for path in (out / "img_emb").iterdir()}
    (out / "metadata/metadata_2.parquet").unlink()
    (out / "img_emb/img_emb_2.npy").write_bytes(b"half")
    embed(*arguments)
    assert content_of(out) == before
    changed = [p.name for p, time in times.items() if p.stat().st_mtime_ns != time]
    assert changed == ["img_emb_2.npy"]
    assert "13 samples embedded in 4 parts, 1 could not be" in capsys.readouterr().out


def test_pictures_in_a_folder_without_captions_have_no_texts(model: Path, tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / f"pictures/{n}.png").write_bytes(png(n))
    out = tmp_path / "out"
    embed(model, tmp_path / "pictures", "--out", out, "data.workers=0")
    assert [row["key"] for row in table(out)] == ["0", "1", "2"]
    assert not (out / "text_emb").exists()
    assert not read_manifest(out).has_texts


def test_a_table_keeps_the_columns_of_its_owner(model: Path, tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    lines = ["image,captions,price,shop", "0.png,a red cup,3,here", "1.png,a blue cup,4,there"]
    (tmp_path / "cups.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    embed(model, tmp_path / "cups.csv", "--out", out, "data.workers=0")
    rows = table(out)
    assert [row["caption"] for row in rows] == ["a red cup", "a blue cup"]
    assert [(row["price"], row["shop"]) for row in rows] == [("3", "here"), ("4", "there")]


def test_pictures_are_turned_by_their_exif_tag_or_not(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows, the sizes in the metadata, pictures read again and queries agree."""
    exif = Image.Exif()
    exif[0x0112] = 8
    photo = encoded(picture(1, (24, 16)), "JPEG", exif=exif)
    write_shard(tmp_path / "corpus/0.tar", {"a": {"jpg": photo, "txt": "a photo"}})
    for turns in (True, False):
        out = tmp_path / str(turns)
        setting = f"data.exif_orientation={str(turns).lower()}"
        embed(model, tmp_path / "corpus", "--out", out, "--dtype", "float32", setting)
        (row,) = table(out)
        assert (row["width"], row["height"]) == ((16, 24) if turns else (24, 16))
        expected = load(model).encode_image(photo, exif_orientation=turns)
        found = torch.from_numpy(rows_of(out, "img_emb"))
        torch.testing.assert_close(found, expected)
        index = Index.open(out)
        assert CorpusPictures.open(index.manifest).read(row).size == (row["width"], row["height"])
        (hit,) = index.search(image=photo, k=1)
        assert hit.score == pytest.approx(1, abs=1e-6)
    message = refusal(capsys, model, tmp_path / "corpus", "--out", out)
    assert "data.exif_orientation False there, True here" in message


def test_what_does_not_fit_is_refused(
    model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    embed(model, shards, "--out", out, "data.workers=0")
    torch.manual_seed(1)
    other = small_checkpoints.save(tmp_path / "m", 1, model=DualEncoder(MODEL), model_json=MODEL)
    message = refusal(capsys, other, shards, "--out", out, "data.workers=0")
    assert "has embeddings of something else: model_digest" in message
    message = refusal(capsys, model, shards, "--out", out, "--dtype", "float32")
    assert "dtype float16 there, float32 here" in message
    message = refusal(capsys, model, shards, "--out", shards)
    assert "has files, but no manifest.json" in message
    message = refusal(capsys, model, shards, "--out", tmp_path / "new", "--task", "4/3")
    assert "--task 4/3 is not I/N" in message
    (tmp_path / "empty").mkdir()
    assert "has no .jpg" in refusal(capsys, model, tmp_path / "empty", "--out", tmp_path / "new")


def test_a_model_that_gives_no_numbers_is_named_with_the_samples(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = DualEncoder(MODEL)
    torch.nn.init.constant_(encoder.get_parameter("visual.proj"), torch.nan)
    broken = small_checkpoints.save(tmp_path / "m", 1, model=encoder, model_json=MODEL)
    message = refusal(capsys, broken, shards, "--out", tmp_path / "out", "data.workers=0")
    assert "the model cannot embed k00, k01" in message
    assert "parameters are not finite, first visual.proj" in message
    assert not list((tmp_path / "out").glob("metadata/*"))
