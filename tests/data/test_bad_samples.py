"""A bad sample is named, quarantined and replaced; it moves no other, and too many stop the run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from loading import TOKENS, batch, batches, is_row_of, same
from samples import heic, jpeg, pair, png, png_claiming, write_corpus, write_shard

from clipx.data.loader import Loaded, load
from clipx.data.tar_index import load_index
from clipx.types import UserError

FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "truncated png": ({"png": png(9)[:-60], "txt": "x"}, "image", "truncated"),
    "truncated jpeg": ({"jpg": jpeg(9)[:-30], "txt": "x"}, "image", "truncated"),
    "html": ({"jpg": "<html>404 not found</html>", "txt": "x"}, "image", "b'<html>404 no'"),
    "zero bytes": ({"jpg": b"", "txt": "x"}, "image", "0 bytes"),
    "bomb": ({"png": png_claiming(60_000, 60_000), "txt": "x"}, "image", "max_image_pixels"),
    "too large": (
        {"png": png_claiming(100, 100), "txt": "x"},
        "image",
        r"100 x 100 pixels exceed max_image_pixels 9999; raise data\.max_image_pixels to use such",
    ),
    "no image": ({"txt": "x"}, "image", "no image member"),
    "ppm": ({"ppm": png(9), "txt": "x"}, "image", "no image member; looked for jpg, jpeg"),
    "heic": ({"heic": heic(), "txt": "x"}, "image", r"is \.heic: HEIC cannot .* `heif-convert"),
    "heic as jpg": ({"jpg": heic(), "txt": "x"}, "image", "HEIC cannot be read; convert"),
    "no caption": ({"png": png(9)}, "caption", "no text in captions or txt; fields there: none"),
    "empty caption": ({"png": png(9), "txt": " \n"}, "caption", "no text in captions or txt"),
    "no field": ({"png": png(9), "json": {"alt": "x"}}, "caption", "fields there: json, alt"),
    "list of numbers": (
        {"png": png(9), "json": {"captions": [1]}},
        "caption",
        "no text in captions or txt",
    ),
    "json list": ({"png": png(9), "json": [1]}, "caption", "no text in captions or txt"),
    "broken json": ({"png": png(9), "json": "{", "txt": "x"}, "caption", "does not parse"),
    "latin-1": ({"png": png(9), "txt": b"caf\xe9"}, "caption", "not UTF-8"),
}


def with_fault(folder: Path, members: dict[str, Any], key: str = "k08") -> Path:
    samples = write_corpus(folder)
    last = {k: v for k, v in samples.items() if k >= "k06"}
    write_shard(folder / "00002.tar", last | {key: members})
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_sample_is_quarantined_and_no_other_moves(
    tmp_path: Path, corpus: Path, fault: str
) -> None:
    members, stage, message = FAULTS[fault]
    folder = with_fault(tmp_path / "faulty", members)
    settings: dict[str, Any] = {"global_batch_size": 13, "pad_to": TOKENS}
    settings |= {"max_image_pixels": 9_999}
    good, hurt = (batch(batches(path, **settings), 2) for path in (corpus, folder))
    where = good.keys.index("k08")
    (bad,) = hurt.bad
    assert (bad.key, bad.stage, bad.position) == ("k08", stage, good.positions[where])
    assert bad.shard == str(folder / "00002.tar")
    assert re.search(message, bad.message)
    assert hurt.keys[where] in set(good.keys) - {"k08"}
    assert all(is_row_of(hurt, i, good, i) for i in range(13) if i != where)
    assert same(hurt, batch(batches(folder, **settings), 2))
    assert hurt.fingerprint != good.fingerprint
    json.dumps(bad.record())


def test_the_record_of_a_replaced_sample_is_the_ranks_own(tmp_path: Path) -> None:
    folder = with_fault(tmp_path, FAULTS["html"][0])
    whole = batch(batches(folder, global_batch_size=24), 0)
    ranks = [batch(batches(folder, global_batch_size=24, rank=r, world_size=2), 0) for r in (0, 1)]
    assert sorted(b.position for r in ranks for b in r.bad) == [b.position for b in whole.bad]
    assert all(b.position % 2 == r for r in (0, 1) for b in ranks[r].bad)
    assert sorted(ranks[0].keys + ranks[1].keys) == sorted(whole.keys)


def test_a_shard_that_shrank_after_it_was_opened_is_a_fault_of_reading(corpus: Path) -> None:
    source = batches(corpus, global_batch_size=13)
    batch(source, 0)
    *_, (_, offset, size) = load_index(corpus / "00002.tar").members(6)
    os.truncate(corpus / "00002.tar", offset + size - 1)
    bad = batch(source, 0).bad[0]  # its replacement may be itself, so there may be more
    assert (bad.key, bad.stage) == ("k12", "read")
    assert "ends at byte" in bad.message
    assert "1 bytes early" in bad.message


@pytest.mark.parametrize("change", ["gone", "rewritten", "html"])
def test_a_shard_that_changes_before_it_is_opened_is_bad_as_a_whole(
    corpus: Path, change: str
) -> None:
    source = batches(corpus, global_batch_size=13)
    path = corpus / "00002.tar"
    if change == "gone":
        path.unlink()
    elif change == "html":
        path.write_text("<html>" * 1000)
    else:
        write_shard(path, {"other": pair(0)})
    loaded = batch(source, 0)
    assert set(loaded.keys) <= {f"k{n:02d}" for n in range(6)}
    reasons = {"gone": "No such file", "rewritten": "has changed", "html": "is not a tar file"}
    assert len({bad.position for bad in loaded.bad}) == 7
    assert {bad.stage for bad in loaded.bad} == {"read"}
    assert all(reasons[change] in bad.message for bad in loaded.bad)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on 1 core
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_without_a_usable_sample_stops_with_its_cause(
    tmp_path: Path, workers: int
) -> None:
    write_shard(tmp_path / "0.tar", {f"{n}": {"jpg": "<html>", "txt": "x"} for n in range(5)})
    with pytest.raises(UserError) as caught:
        next(load(batches(tmp_path, workers=workers), 0, 3))
    message = str(caught.value)
    assert "64 samples in a row cannot be used" in message
    assert "not readable as JPEG" in message
    assert "0.tar" in message
    assert "Traceback" not in message


def with_a_quarter_bad(folder: Path) -> Path:
    samples = {f"{n}": pair(n) if n % 4 else {"jpg": b"", "txt": "x"} for n in range(16)}
    write_shard(folder / "0.tar", samples)
    return folder


def numbers(loaded: Iterator[Loaded]) -> tuple[int, int]:
    pairs = [(len(item.keys), len(item.bad)) for item in loaded]
    return sum(p[0] for p in pairs), sum(p[1] for p in pairs)


def test_a_high_rate_of_bad_samples_stops_the_run(tmp_path: Path) -> None:
    """Each of a quarter bad draws brings a third of another: 500 / 4 * 4 / 3 = 167 on average."""
    source = batches(with_a_quarter_bad(tmp_path), global_batch_size=100, max_bad_fraction=0.2)
    loaded = load(source, 0, 20)
    seen, num_bad = numbers(islice(loaded, 4))
    assert seen == 400
    assert num_bad > 80
    next(loaded)  # 500: what is bad in it is handed on before the run stops
    with pytest.raises(UserError, match=r"1\d\d of 500 samples are bad.*max_bad_fraction=0\.2"):
        next(loaded)


def test_a_rate_that_is_allowed_goes_on(tmp_path: Path) -> None:
    source = batches(with_a_quarter_bad(tmp_path), global_batch_size=100, max_bad_fraction=0.5)
    seen, num_bad = numbers(load(source, 0, 8))
    assert seen == 800
    # Mean 800 / 4 * 4 / 3 = 267; replacements vary by sqrt(200 * 4/9) = 9.
    assert abs(num_bad - 267) < 4 * 9 + 4


def test_shards_that_cannot_be_read_are_all_named(corpus: Path) -> None:
    for name in ("x.tar", "y.tar"):
        (corpus / name).write_bytes(b"<html>" * 1000)
    with pytest.raises(UserError, match=r"(?s)2 of 5 shards.*x\.tar is not.*y\.tar is not"):
        batches(corpus)
    faults = batches(corpus, max_bad_fraction=0.5).corpus.faults
    assert [(Path(f.shard).name, f.stage, f.key) for f in faults] == [
        ("x.tar", "shard", ""),
        ("y.tar", "shard", ""),
    ]


def test_a_tar_that_ends_early_is_named_and_costs_its_tail_only(corpus: Path) -> None:
    members = load_index(corpus / "00000.tar").members(4)
    os.truncate(corpus / "00000.tar", members[0][1] - 512)
    source = batches(corpus, global_batch_size=12)
    assert sorted(batch(source, 0).keys) == [f"k{n:02d}" for n in range(13) if n != 4]
    (fault,) = source.corpus.faults
    assert (fault.error, fault.stage) == ("TruncatedTar", "shard")
    assert "the samples after its first 4 are missing" in fault.message


def test_a_corpus_of_empty_shards_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {})
    with pytest.raises(UserError, match=r"all 1 shards are empty"):
        batches(tmp_path)


def test_a_skip_list_changes_no_batch(tmp_path: Path) -> None:
    """Without the list, the same samples are bad and have the same replacements."""
    folder = with_fault(tmp_path / "faulty", FAULTS["html"][0])
    read = [batch(batches(folder, global_batch_size=13), k) for k in range(4)]
    lines = [bad.record() for loaded in read for bad in loaded.bad]
    lines.append({"shard": "elsewhere/0.tar", "key": "k01"})
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = batches(folder, global_batch_size=13, skip=str(tmp_path / "bad.jsonl"))
    assert source.corpus.skip == {2: {"k08"}}
    assert source.corpus.skip_unknown == 1
    for k in range(4):
        assert same(replace(read[k], bad=[]), batch(source, k))


@pytest.mark.parametrize("content", [None, "{", '{"key": "a"}', "[1]"])
def test_a_skip_list_that_is_none_is_refused(
    tmp_path: Path, corpus: Path, content: str | None
) -> None:
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"data\.skip .*bad\.jsonl cannot be read as JSON lines"):
        batches(corpus, skip=str(path))


def test_a_fault_of_the_code_says_which_sample_met_it(corpus: Path) -> None:
    source = batches(corpus)
    source.tokenizer = None  # type: ignore[assignment]
    with pytest.raises(AttributeError) as caught:
        source[0]
    (note,) = caught.value.__notes__
    assert re.fullmatch(r"while reading sample \d+ of .*0000\d\.tar", note)
