"""`clipx dedup`, `anomaly`, `cluster`, `recommend` and `search --picture` on the command line."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_checkpoints
import torch
from PIL import Image
from samples import encoded, picture, png, write_shard
from tiny_runs import MODEL, write_config

from clipx import cli, cli_hits
from clipx.data.config import DataConfig
from clipx.models.dual_encoder import DualEncoder
from clipx.picture_grid import COLUMNS, TILE_WIDTH
from clipx.search.query import Hit, Index

Capture = pytest.CaptureFixture[str]


def refusal(capsys: Capture, *arguments: Any) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def run(*arguments: Any) -> None:
    cli.main([str(argument) for argument in arguments])


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def copied(collection: Path, tmp_path: Path) -> Path:
    """Embeddings and corpus of their own, to be damaged."""
    shutil.copytree(collection.parent / "corpus", tmp_path / "corpus")
    shutil.copytree(collection, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    manifest["data"]["shards"] = str(tmp_path / "corpus")
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "out"


# --- dedup ---


def test_dedup_lists_repeats_and_keeps_the_largest(
    collection: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "dup.jsonl"
    sheet = tmp_path / "new/groups.png"
    run("dedup", collection, "--threshold", "0.9999", "--out", out, "--picture", sheet)
    said = capsys.readouterr().out
    assert "all pairs compared" in said
    assert "2 groups" in said
    assert "3 dropped" in said
    groups = json_lines((tmp_path / "dup.groups.jsonl").read_text())
    assert [group["size"] for group in groups] == [3, 2]
    # r01 has more pixels; of two equal ones the first is kept.
    assert [[sample["key"] for sample in group["kept"]] for group in groups] == [["r01"], ["d11"]]
    assert [sample["key"] for sample in groups[0]["dropped"]] == ["d03", "r00"]
    assert groups[0]["dropped"][0]["similarity"] > 0.9999
    listed = json_lines(out.read_text())
    assert [line["key"] for line in listed] == ["d03", "r00", "r02"]
    with Image.open(sheet) as drawn:
        assert drawn.width == COLUMNS * TILE_WIDTH + 12


def test_training_skips_what_dedup_lists_and_sees_the_others_in_the_same_order(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by another path of the same shards than that under which they were embedded."""
    out = tmp_path / "dup.jsonl"
    run("dedup", collection, "--threshold", "0.9999", "--out", out)
    monkeypatch.chdir(collection.parent)
    config = DataConfig(shards="corpus", caption_field="txt", streams=4)
    plain = config.corpus(config.open_sources(), seed=5, needs_captions=False)
    skipping = replace(config, skip=str(out))
    skipped = skipping.corpus(skipping.open_sources(), seed=5, needs_captions=False)
    assert skipped.skip_unknown == 0

    dropped = {"d03", "r00", "r02"}
    positions = np.arange(3 * plain.num_samples)
    located = plain.locate(positions)
    num_replaced = 0
    for position, shard, sample in zip(positions, located.shard, located.sample, strict=True):
        place = (int(position), int(shard), int(sample))
        before = plain.usable(*place, lambda sample: None).key
        after = skipped.usable(*place, lambda sample: None).key
        assert after not in dropped
        if before in dropped:
            num_replaced += 1
        else:
            assert after == before
    assert num_replaced == 9, "three samples in three epochs"


def test_batches_of_a_run_differ_only_where_a_sample_is_listed(
    collection: Path, tmp_path: Path
) -> None:
    """The keys of its batches, by the loader of training."""
    from loading import batches

    out = tmp_path / "dup.jsonl"
    run("dedup", collection, "--threshold", "0.9999", "--out", out)
    shards = str(collection.parent / "corpus")
    settings: dict[str, Any] = {"shards": shards, "global_batch_size": 7}
    plain = batches(None, **settings)
    skipped = batches(None, skip=str(out), **settings)
    pairs = []
    for number in range(6):
        pairs += zip(plain[number].keys, skipped[number].keys, strict=True)
    differing = {before for before, after in pairs if before != after}
    assert {before for before, _ in pairs} >= {"d03", "r00", "r02"}
    # d05 has no caption, so training replaces it too, by a sample that may be in the list.
    assert {"d03", "r00", "r02"} <= differing <= {"d03", "r00", "r02", "d05"}
    assert not {after for _, after in pairs} & {"d03", "r00", "r02"}


def test_a_sample_that_shares_its_shard_and_key_with_a_kept_one_is_not_listed(
    collection: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A corpus that names a shard twice: skipping one would skip both."""
    twice = tmp_path / "twice"
    source = str(collection.parent / "corpus/1.tar")
    sources = {name: {"name": "webdataset", "shards": source} for name in ("a", "b")}
    config = write_config(tmp_path / "c", tmp_path, data={"sources": sources, "workers": 0})
    model = json.loads((collection / "manifest.json").read_text())["model"]
    run("embed", model, config, "--out", twice, "--precision", "fp32")
    capsys.readouterr()
    run("dedup", twice, "--threshold", "0.9999")
    said = capsys.readouterr().out
    listed = json_lines((twice / "duplicates.jsonl").read_text())
    assert {line["key"] for line in listed} == {"r00"}, "like r01, of another key"
    assert "have the shard and key of a kept one" in said


def test_semdedup_and_an_index_say_what_they_compared(copied: Path, capsys: Capture) -> None:
    run("dedup", copied, "--method", "semdedup", "--clusters", "2", "--threshold", "0.9999")
    said = capsys.readouterr().out
    assert "compared within clusters" in said
    assert "3 dropped" in said
    run("index", copied, "--kind", "hnsw", "--recall", "0.5")
    capsys.readouterr()
    run("dedup", copied, "--threshold", "0.9999")
    said = capsys.readouterr().out
    assert "pairs that the index (hnsw) proposes" in said
    assert "3 dropped" in said
    run("dedup", copied, "--threshold", "0.9999", "--exact")
    assert "all pairs compared" in capsys.readouterr().out


# --- anomaly ---


def test_anomaly_ranks_by_distance(collection: Path, capsys: Capture) -> None:
    run("anomaly", collection, "-k", "1", "--top", "21", "--json")
    lines = json_lines(capsys.readouterr().out)
    assert len(lines) == 21
    assert {line["key"] for line in lines[-5:]} == {"d03", "r00", "r01", "d11", "r02"}
    scores = [line["score"] for line in lines]
    assert scores == sorted(scores, reverse=True)
    run("anomaly", collection)
    assert "distance" in capsys.readouterr().out


def test_anomaly_with_a_reference_finds_what_that_has_not(
    collection: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = json.loads((collection / "manifest.json").read_text())["model"]
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    samples = {
        "known": {"png": png(4, (32, 32))},
        "odd": {"png": encoded(Image.fromarray(noise), "PNG")},
    }
    write_shard(tmp_path / "new/0.tar", samples)
    run("embed", model, tmp_path / "new", "--out", tmp_path / "emb", "--precision", "fp32")
    capsys.readouterr()
    run("anomaly", tmp_path / "emb", "-k", "1", "--reference", collection, "--json")
    lines = json_lines(capsys.readouterr().out)
    assert [line["key"] for line in lines] == ["odd", "known"]
    assert lines[1]["score"] == pytest.approx(0, abs=1e-3)
    assert "is the folder itself" in refusal(
        capsys, "anomaly", collection, "--reference", collection
    )
    torch.manual_seed(9)
    other = small_checkpoints.save(tmp_path / "m", 1, model=DualEncoder(MODEL), model_json=MODEL)
    run("embed", other, tmp_path / "new", "--out", tmp_path / "other", "--precision", "fp32")
    said = refusal(capsys, "anomaly", tmp_path / "other", "-k", "1", "--reference", collection)
    assert "by another model" in said


def test_captions_that_fit_least_are_a_list_for_training(
    collection: Path, tmp_path: Path, capsys: Capture
) -> None:
    run("anomaly", collection, "--captions", "--top", "3", "--json")
    text = capsys.readouterr().out
    index = Index.open(collection)
    texts = Index.open(collection, modality="text").rows
    similarity = (index.rows * texts).sum(axis=1)
    similarity[index.row_of("d05")] = np.inf  # it has no caption
    expected = np.argsort(similarity)[:3].tolist()
    assert [line["row"] for line in json_lines(text)] == expected
    (tmp_path / "skip.jsonl").write_text(text)
    config = DataConfig(shards=str(collection.parent / "corpus"), skip=str(tmp_path / "skip.jsonl"))
    corpus = config.open(seed=0)
    assert sum(map(len, corpus.skip.values())) == 3


# --- cluster ---


def test_clusters_are_written_and_named(collection: Path, tmp_path: Path, capsys: Capture) -> None:
    table = tmp_path / "c.parquet"
    sheet = tmp_path / "c.png"
    settings = ["--clusters", "3", "--picture", sheet]
    run("cluster", collection, "--out", table, *settings)
    rows = pq.read_table(table).to_pylist()
    assert [row["row"] for row in rows] == list(range(21))
    assert rows[0]["key"] == "d00"
    by_key = {row["key"]: row for row in rows}
    assert by_key["d03"]["cluster"] == by_key["r00"]["cluster"]
    assert all(row["name"] for row in rows)
    assert max(row["similarity"] for row in rows) <= 1 + 1e-5
    said = capsys.readouterr().out
    assert "cohesion" in said
    with Image.open(sheet) as drawn:
        assert drawn.height > 3 * 100
    again = tmp_path / "again.jsonl"
    run("cluster", collection, "--out", again, "--clusters", "3")
    assert json_lines(again.read_text()) == rows, "the seed decides, in either format"


def test_clusters_are_named_by_classes(collection: Path, tmp_path: Path, capsys: Capture) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red thing\nblue thing\n")
    out = tmp_path / "c.jsonl"
    settings = ["--clusters", "2", "--names", names, "--prompt", "a {c}"]
    run("cluster", collection, "--out", out, *settings)
    assert {row["name"] for row in json_lines(out.read_text())} <= {"red thing", "blue thing"}
    run("cluster", collection, "--out", out, "--clusters", "2", "--column", "shop")
    found = {row["name"] for row in json_lines(out.read_text())}
    assert found <= {"red", "blue", "blue, red", "red, blue"}


# --- recommend and search ---


def test_recommend_takes_files_keys_and_rows(
    collection: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "like.png"
    picture(3, (32, 32)).save(file)
    run("recommend", collection, "--like", file, "--dislike-key", "d04", "-k", "4", "--json")
    lines = json_lines(capsys.readouterr().out)
    index = Index.open(collection)
    expected = index.recommend(likes=[file], dislikes=[index.row_of("d04")], k=4)
    assert [line["key"] for line in lines] == [hit.metadata["key"] for hit in expected]
    settings = ["--like-row", "3", "--strategy", "best", "-k", "1", "--where", "shop = blue"]
    run("recommend", collection, *settings, "--picture", tmp_path / "r.png")
    expected = index.recommend(likes=[3], strategy="best", k=1, where="shop = blue")
    assert str(expected[0].metadata["key"]) in capsys.readouterr().out
    assert (tmp_path / "r.png").stat().st_size > 0


def test_search_draws_its_results(collection: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "like.png"
    picture(6, (32, 32)).save(file)
    sheet = tmp_path / "s.png"
    run("search", collection, "--image", file, "-k", "2", "--picture", sheet, "--json")
    assert len(json_lines(capsys.readouterr().out)) == 2, "messages are on stderr"
    with Image.open(sheet) as drawn:
        # The first result is the picture itself, 32 px enlarged to 128.
        middle = drawn.crop((12 + 8, 26 + 8, 12 + 120, 26 + 120)).resize((27, 27))
    expected = picture(6, (32, 32)).resize((128, 128)).crop((8, 8, 120, 120)).resize((27, 27))
    difference = np.abs(np.asarray(middle, dtype=float)[:24, :24] - np.asarray(expected)[:24, :24])
    assert difference.mean() < 12


def test_a_column_of_the_corpus_does_not_replace_the_score(
    collected: Index, capsys: Capture
) -> None:
    hit = Hit(4, 0.5, {"key": "a", "score": 9, "row": "x", "nan": float("nan")})
    arguments = argparse.Namespace(json=True, picture=None)
    cli_hits.print_hits(collected, [hit], arguments, title="")
    (line,) = json_lines(capsys.readouterr().out)
    own = {"own_score": 9, "own_row": "x"}
    assert line == {"row": 4, "score": 0.5, "key": "a", "nan": None, **own}


def test_a_picture_that_is_gone_is_a_crossed_box(copied: Path, capsys: Capture) -> None:
    (copied.parent / "corpus/1.tar").unlink()
    write_shard(copied.parent / "corpus/1.tar", {"other": {"png": png(50), "txt": "new"}})
    sheet = copied.parent / "s.webp"
    run("recommend", copied, "--like-key", "d03", "-k", "20", "--picture", sheet)
    said = capsys.readouterr().err
    assert "3 of 20 pictures cannot be read again and are drawn as crossed boxes" in said
    assert "the first: the corpus has" in said
    shutil.rmtree(copied.parent / "corpus")
    run("anomaly", copied, "-k", "2", "--top", "2", "--picture", sheet)
    said = capsys.readouterr().err
    assert "2 of 2 pictures cannot be read again" in said
    assert "no shard matches" in said or "corpus" in said


# --- what cannot be meant ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dedup", "--threshold", "1.5"], "--threshold 1.5 is not in (0, 1]"),
        (["dedup", "--threshold", "0"], "--threshold 0.0 is not in (0, 1]"),
        (["dedup", "--method", "semdedup", "--clusters", "22"], "--clusters 22 is not in 1 ... 21"),
        (["dedup", "--picture", "a.gif"], "--picture a.gif must end with one of .png"),
        (["dedup", "--out", "/none/a.jsonl"], "/none/a.jsonl cannot be written: No such file"),
        (["dedup", "--method", "semdedup", "--clusters", "0"], "--clusters 0 is not in 1 ... 21"),
        (["anomaly", "-k", "21"], "-k 21 is not in 1 ... 20"),
        (["anomaly", "--captions", "--reference", "x"], "exclude each other"),
        (["anomaly", "--reference", "/none"], "/none has no manifest.json"),
        (["cluster", "--clusters", "22"], "--clusters 22 is not in 1 ... 21"),
        (["cluster", "--column", "colour"], "there is no column colour; there are key, caption"),
        (["cluster", "--names", "/none.txt"], "--names /none.txt cannot be read"),
        (["cluster", "--prompt", "a {c}"], "--prompt goes with --names"),
        (["cluster", "--out", "a.csv"], "--out a.csv must end with .parquet or .jsonl"),
        (["recommend"], "needs an example"),
        (["recommend", "--dislike-key", "d03"], "needs an example to like"),
        (["recommend", "--like-key", "nobody"], "has no sample with the key 'nobody'"),
        (["recommend", "--like-row", "99"], "has rows 0 to 20, not 99"),
        (["recommend", "--like", "/none.png"], "image /none.png cannot be read: No such file"),
        (["search", "red", "--picture", "sheet"], "--picture sheet must end with one of .png"),
    ],
)
def test_each_mistake_has_one_clear_message(
    collection: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    verb, *rest = arguments
    said = refusal(capsys, verb, collection, *rest)
    assert message in said
    assert said.count("clipx: ") == 1


VERBS: list[list[str]] = [["dedup"], ["anomaly"], ["cluster"], ["recommend", "--like-row", "0"]]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_an_empty_folder_is_refused(verb: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert "has no manifest.json" in refusal(capsys, verb[0], tmp_path, *verb[1:])


def without_captions(tmp_path: Path, collection: Path) -> Path:
    model = json.loads((collection / "manifest.json").read_text())["model"]
    write_shard(tmp_path / "bare/0.tar", {f"b{n}": {"png": png(n, (32, 32))} for n in range(6)})
    run("embed", model, tmp_path / "bare", "--out", tmp_path / "emb", "--precision", "fp32")
    return tmp_path / "emb"


def test_a_corpus_without_captions(collection: Path, tmp_path: Path, capsys: Capture) -> None:
    bare = without_captions(tmp_path, collection)
    said = refusal(capsys, "anomaly", bare, "--captions")
    assert "has no embeddings of texts: its corpus has no captions" in said
    run("cluster", bare, "--clusters", "2")
    said = capsys.readouterr().err
    assert "there are no captions to name clusters by; give --names FILE" in said
    assert {row["name"] for row in pq.read_table(bare / "clusters.parquet").to_pylist()} == {None}
    run("anomaly", bare, "-k", "2", "--top", "1")


def test_a_column_that_is_missing(copied: Path, capsys: Capture) -> None:
    """Of embeddings whose metadata another tool has written anew."""
    for path in (copied / "metadata").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["width"]), path)
    assert "there is no column width; there are key" in refusal(capsys, "dedup", copied)


def without_rows(copied: Path) -> None:
    """As of a corpus none of whose pictures can be embedded."""
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"num_embedded": 0}))
    for path in [*(copied / "img_emb").iterdir(), *(copied / "text_emb").iterdir()]:
        np.save(path, np.load(path)[:0])
    for path in (copied / "metadata").iterdir():
        pq.write_table(pq.read_table(path).slice(0, 0), path)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_a_folder_without_a_row_is_refused(copied: Path, capsys: Capture, verb: list[str]) -> None:
    without_rows(copied)
    said = refusal(capsys, verb[0], copied, *verb[1:])
    assert "none of the 21 samples of the corpus could be embedded" in said
