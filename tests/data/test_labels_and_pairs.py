"""Labels of samples, and samples that are pairs of images or of texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from loading import TOKENIZER, TOKENS, batch, batches
from pyarrow import parquet
from samples import jpeg, png, write_shard

from clipx.data.augment import Augmentation, augment
from clipx.data.config import DataConfig
from clipx.data.decode import decode
from clipx.data.labels import check_contents, label_of
from clipx.data.loader import Batches, load
from clipx.data.order import uniforms
from clipx.data.sample import SampleError
from clipx.objectives.identities import row_ids
from clipx.types import UserError

VIEW = Augmentation(scale=(0.3, 1.0), flip=0.5)
SIZE = 12  # pixels of the batches of `loading`


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (7, 7),
        (-(2**63), -(2**63)),
        (True, 1),
        (False, 0),
        (3.0, 3),
        (b"12\n", 12),
        (" -4 ", -4),
        ("1.0", 1),  # as pandas writes a column of integers with gaps
        ("True", 1),
        ("false", 0),
        ("tabby cat", 8603357709590111023),  # the same in each version, since ids are compared
        (b"tabby cat", 8603357709590111023),
    ],
)
def test_a_label_is_an_integer_or_the_hash_of_a_name(value: Any, label: int) -> None:
    assert label_of(value) == label


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (" ", "empty"),
        ("0.5", "a fraction"),
        (0.5, "not an integer"),
        (2**63, "more than 64 bits"),
        ([1], "not an integer"),
        (b"\xff", "utf-8"),
    ],
)
def test_what_is_no_label_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_of(value)


def labeled(folder: Path, count: int = 12) -> Path:
    """Sample n has the label n % 5 as `.cls`, -n in the `.json`, and a name there."""
    samples = {}
    for n in range(count):
        fields = {"captions": f"picture {n}", "minus": -n, "kind": f"kind {n % 3}"}
        samples[f"k{n:02d}"] = {"png": png(n), "cls": f"{n % 5}\n", "json": fields}
    write_shard(folder / "0.tar", samples)
    return folder


def numbers(source: Batches, k: int) -> list[int]:
    return [int(key[1:]) for key in batch(source, k).keys]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("field", ["cls", "minus", "kind"])
def test_the_label_of_each_sample_comes_with_its_batch(
    tmp_path: Path, field: str, cached: bool
) -> None:
    """Also when the reader remembers the samples of earlier epochs."""
    settings = {"decoded_cache": str(tmp_path / "cache")} if cached else {}
    source = batches(labeled(tmp_path / "data"), label_field=field, **settings)
    expected = {
        "cls": lambda n: n % 5,
        "minus": lambda n: -n,
        "kind": lambda n: label_of(f"kind {n % 3}"),
    }[field]
    for k in range(4):  # 2.7 epochs
        rows = batch(source, k)
        assert rows.views["label"].dtype == torch.int64
        assert rows.views["label"].tolist() == [expected(n) for n in numbers(source, k)]
        ids = row_ids(rows, ["label", "sample"], pad_id=0)
        assert ids[:, 0].tolist() == rows.views["label"].tolist()


def test_labels_come_from_worker_processes_and_to_each_rank(tmp_path: Path) -> None:
    folder = labeled(tmp_path)
    whole = [batch(batches(folder, label_field="cls"), k) for k in range(2)]
    source = batches(folder, label_field="cls", workers=1)
    for one, other in zip(whole, load(source, 0, 2), strict=True):
        assert torch.equal(one.views["label"], other.views["label"])
    for rank in (0, 1):
        part = batch(batches(folder, label_field="cls", rank=rank, world_size=2), 1)
        assert torch.equal(part.views["label"], whole[1].views["label"][rank::2])


def table_of_labels(folder: Path, kind: str) -> dict[str, Any]:
    """The settings of a table with the labels 0, 10, 20 ..."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 8
    for n in range(count):
        (folder / f"{n}.png").write_bytes(png(n))
    path = folder / ("t.csv" if kind == "csv" else "t.parquet")
    columns: dict[str, Any] = {"caption": [f"picture {n}" for n in range(count)]}
    columns["label"] = [10 * n for n in range(count)]
    if kind == "parquet of images":
        columns["image"] = [png(n) for n in range(count)]
    else:
        columns["path"] = [f"{n}.png" for n in range(count)]
    if kind == "csv":
        lines = [",".join(columns), *(f"picture {n},{10 * n},{n}.png" for n in range(count))]
        path.write_text("\n".join(lines) + "\n")
    else:
        parquet.write_table(pa.table(columns), path)
    return {
        "sources": {"t": {"name": "table", "path": str(path)}},
        "caption_field": "caption",
        "label_field": "label",
    }


@pytest.mark.parametrize("kind", ["csv", "parquet of paths", "parquet of images"])
def test_a_column_of_a_table_is_a_label(tmp_path: Path, kind: str) -> None:
    source = batches(None, **table_of_labels(tmp_path, kind))
    rows = batch(source, 0)
    expected = [10 * int(key[:8]) for key in rows.keys]
    assert rows.views["label"].tolist() == expected


def test_numbers_of_a_parquet_table_are_covered_by_its_digest(tmp_path: Path) -> None:
    """The part before the colon is the digest of earlier versions, so that their runs resume."""
    columns = {"path": ["0.png", "1.png"], "caption": ["a", "b"]}
    digests = []
    for label in (None, [0, 1], [1, 1]):
        numbers = {} if label is None else {"label": label}
        parquet.write_table(pa.table(columns | numbers), tmp_path / "t.parquet")
        settings = {"sources": {"t": {"name": "table", "path": str(tmp_path / "t.parquet")}}}
        corpus = DataConfig(**settings, caption_field="caption").open(seed=0)
        digests.append((corpus.digest, corpus.layout_digest))
    assert len({digest for digest, _ in digests}) == 3
    assert len({layout for _, layout in digests}) == 1
    assert digests[0][0] == digests[0][1]


def test_a_sample_without_a_usable_label_is_quarantined_and_replaced(tmp_path: Path) -> None:
    folder = labeled(tmp_path, 8)
    samples = {f"k{n:02d}": {"png": png(n), "txt": "x", "cls": str(n)} for n in range(8, 12)}
    samples["k09"]["cls"] = "0.5"
    del samples["k10"]["cls"]
    write_shard(folder / "1.tar", samples)
    source = batches(folder, label_field="cls", global_batch_size=12, caption_field="captions")
    rows = batch(source, 0)
    bad = {one.key: one for one in rows.bad}
    assert {one.stage for one in rows.bad} == {"label"}
    assert "cls: 0.5 is a fraction" in bad["k09"].message
    assert "no cls; fields there: txt" in bad["k10"].message
    usable = {f"k{n:02d}" for n in range(12)} - {"k09", "k10"}
    assert len(rows.keys) == 12
    assert set(rows.keys) <= usable
    assert len(rows.views["label"]) == 12


def test_a_label_field_that_no_sample_has_is_refused(tmp_path: Path) -> None:
    folder = labeled(tmp_path)
    assert check_contents(batches(folder, label_field="cls").corpus) == []
    with pytest.raises(UserError) as caught:
        check_contents(batches(folder, label_field="class").corpus)
    message = str(caught.value)
    assert "data.label_field: none of 12 samples looked at can be used" in message
    assert "no class; fields there: json, cls, captions, minus, kind" in message


# --- Pairs ---


def pairs_of_images(folder: Path, kind: str) -> dict[str, Any]:
    """The settings of eight pairs: png(n) with jpeg(100 + n)."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 8
    settings: dict[str, Any] = {"pair_images": ("a", "b")}
    if kind == "shard":
        samples = {f"{n:08d}": {"a.png": png(n), "b.jpg": jpeg(100 + n)} for n in range(count)}
        write_shard(folder / "0.tar", samples)
        return settings | {"shards": str(folder)}
    columns: dict[str, Any] = {
        "a": [png(n) for n in range(count)],
        "b": [jpeg(100 + n) for n in range(count)],
    }
    if kind != "parquet of images":
        for name, pictures in columns.items():
            for n, data in enumerate(pictures):
                (folder / f"{name}{n}").write_bytes(data)
        columns = {name: [f"{name}{n}" for n in range(count)] for name in ("a", "b")}
    path = folder / ("t.csv" if kind == "csv" else "t.parquet")
    if kind == "csv":
        path.write_text("a,b\n" + "".join(f"a{n},b{n}\n" for n in range(count)))
    else:
        parquet.write_table(pa.table(columns), path)
    return settings | {"sources": {"t": {"name": "table", "path": str(path), "image_column": "a"}}}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["shard", "csv", "parquet of paths", "parquet of images"])
def test_both_images_of_a_pair_have_draws_of_their_own(
    tmp_path: Path, kind: str, cached: bool
) -> None:
    """The oracle: each image is decoded and augmented by itself, by the draws of its view."""
    settings = pairs_of_images(tmp_path / "pairs", kind)
    if cached:
        settings["decoded_cache"] = str(tmp_path / "cache")
    source = batches(None, seed=3, augmentations=[VIEW, VIEW], needs_captions=False, **settings)
    for k in range(2):
        rows = batch(source, k)
        assert rows.views.keys() == {"image", "image_2"}
        for row, (key, position) in enumerate(zip(rows.keys, rows.positions, strict=True)):
            n = int(key[:8])
            draws = uniforms(3, position, 25)
            first = augment(decode(png(n)), SIZE, VIEW, draws[1:13])
            second = augment(decode(jpeg(100 + n)), SIZE, VIEW, draws[13:25])
            assert torch.equal(rows.views["image"][row], first)
            assert torch.equal(rows.views["image_2"][row], second)


def test_pairs_are_the_same_for_any_number_of_ranks(tmp_path: Path) -> None:
    settings = pairs_of_images(tmp_path, "shard")
    settings |= {"augmentations": [VIEW, VIEW], "needs_captions": False, "decode": "scaled"}
    whole = batch(batches(None, **settings), 1)
    for rank in (0, 1):
        part = batch(batches(None, rank=rank, world_size=2, **settings), 1)
        assert part.keys == whole.keys[rank::2]
        for name in ("image", "image_2"):
            assert torch.equal(part.views[name], whole.views[name][rank::2])


def pairs_of_texts(folder: Path, kind: str) -> dict[str, Any]:
    """The settings of eight pairs: `question n` with one of two answers."""
    folder.mkdir(parents=True, exist_ok=True)
    samples: dict[str, dict[str, Any]] = {}
    for n in range(8):
        if kind == "json":
            answers = [f"answer {n}", f"other answer {n}"]
            samples[f"{n:08d}"] = {"json": {"question": f"question {n}", "answer": answers}}
        else:
            texts = {"question.txt": f"question {n}", "answer.txt": f"answer {n}"}
            samples[f"{n:08d}"] = texts
    settings: dict[str, Any] = {"pair_texts": ("question", "answer")}
    if kind == "table":
        lines = [f"question {n},answer {n}" for n in range(8)]
        (folder / "t.csv").write_text("\n".join(["question,answer", *lines]) + "\n")
        table = {"name": "table", "path": str(folder / "t.csv"), "image_column": "none"}
        return settings | {"sources": {"t": table}}
    write_shard(folder / "0.tar", samples)
    return settings | {"shards": str(folder)}


@pytest.mark.parametrize("kind", ["json", "members", "table"])
def test_a_pair_of_texts_needs_no_image(tmp_path: Path, kind: str) -> None:
    settings = pairs_of_texts(tmp_path, kind)
    source = batches(None, augmentations=[], pad_to=TOKENS, **settings)
    answers = set()
    for k in range(6):
        rows = batch(source, k)
        assert rows.views.keys() == {"text", "text_2"}
        for row, (key, position) in enumerate(zip(rows.keys, rows.positions, strict=True)):
            n = int(key[:8])
            answer = f"answer {n}"
            # One draw for each text; of two answers, each has half of them.
            if kind == "json" and uniforms(0, position, 2)[1] >= 0.5:
                answer = f"other answer {n}"
            answers.add(answer.partition(" ")[0])
            for name, text in (("text", f"question {n}"), ("text_2", answer)):
                ids = TOKENIZER.encode(text, TOKENS)
                assert rows.views[name][row, : len(ids)].tolist() == ids
    assert answers == ({"answer", "other"} if kind == "json" else {"answer"})


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("shard", {"pair_images": ("a", "c")}, r"looked for c\.jpg.*members there: a\.png, b\.jpg"),
        ("csv", {"pair_images": ("a", "c")}, "the table has no image column 'c'; it has a, b"),
        ("parquet of images", {"pair_images": ("a", "c")}, "no image column 'c'; it has a, b"),
    ],
)
def test_a_pair_that_no_sample_has_is_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    settings = pairs_of_images(tmp_path, kind) | changes
    corpus = batches(None, needs_captions=False, augmentations=[VIEW, VIEW], **settings).corpus
    with pytest.raises(UserError, match=message):
        check_contents(corpus)


def test_a_second_text_that_no_sample_has_is_refused(tmp_path: Path) -> None:
    settings = pairs_of_texts(tmp_path, "json") | {"pair_texts": ("question", "reply")}
    with pytest.raises(UserError, match=r"data\.pair_texts: none of 8.*no text in reply"):
        check_contents(batches(None, augmentations=[], **settings).corpus)


def test_sources_of_single_images_name_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    sources = {
        "folder": {"name": "folder", "path": str(tmp_path)},
        "synthetic": {"name": "synthetic", "samples": 4, "shards": 1},
    }
    for name, source in sources.items():
        config = DataConfig(sources={name: source}, pair_images=("a", "b"))
        corpus = config.open(seed=0)
        with pytest.raises(SampleError, match="one image; list pairs in a table"):
            corpus.read(0, 0)
        texts = replace(config, pair_images=None, pair_texts=("txt", "txt"))
        if name == "synthetic":
            assert texts.open(seed=0).read(0, 0).images == ()


def test_both_kinds_of_pairs_at_once_are_refused() -> None:
    config = DataConfig(shards="x", pair_images=("a", "b"), pair_texts=("c", "d"))
    with pytest.raises(UserError, match="leave one out"):
        _ = config.pair
