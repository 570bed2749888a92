"""A corpus with every fault there is: each is named, nothing else is lost."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from loading import batches
from samples import as_bytes, jpeg, pair, png, png_claiming, write_shard
from tiny_runs import metrics, write_config

from clipx import cli
from clipx.data.loader import load
from clipx.data.tar_index import load_index

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "truncated-jpeg": ({"jpg": jpeg(1, (400, 300))[:-3000], "txt": "a"}, "image"),
    "truncated-png": ({"png": png(1)[:-50], "txt": "a"}, "image"),
    "html": ({"jpg": "<!doctype html><title>404</title>", "txt": "a"}, "image"),
    "zero-bytes": ({"jpg": b"", "txt": "a"}, "image"),
    "bomb": ({"png": png_claiming(60_000, 60_000), "txt": "a"}, "image"),
    "no-image": ({"txt": "a"}, "image"),
    "no-caption": ({"png": png(2)}, "caption"),
    "empty-caption": ({"png": png(2), "txt": " \n\t"}, "caption"),
    "latin-1": ({"png": png(2), "txt": "café".encode("latin-1")}, "caption"),
    "broken-json": ({"png": png(2), "json": '{"captions": ['}, "caption"),
}
GOOD = [f"good{n:02d}" for n in range(40)]
Named = set[tuple[str, str, str]]  # shard, key, stage


def write_faulty_corpus(folder: Path) -> Named:
    """Returns what the quarantine must name."""
    good = {key: pair(n) for n, key in enumerate(GOOD)}

    def some(first: int, last: int) -> dict[str, Any]:
        return {key: good[key] for key in GOOD[first:last]}

    write_shard(folder / "0-good.tar", some(0, 20))
    faulty = {key: members for key, (members, _) in FAULTS.items()}
    write_shard(folder / "1-samples.tar", some(20, 24) | faulty | some(24, 30))
    _write_duplicates(folder / "2-duplicate.tar", some(30, 34))
    write_shard(folder / "3-cut.tar", some(34, 40) | {"lost": pair(1), "lost-too": pair(2)})
    cut = load_index(folder / "3-cut.tar").members(6)[0][1]
    os.truncate(folder / "3-cut.tar", cut + 9)
    (folder / "4-html.tar").write_text("<html>no such bucket</html>" * 100)
    named = {("1-samples.tar", key, stage) for key, (_, stage) in FAULTS.items()}
    named |= {("2-duplicate.tar", GOOD[30], "key")}
    return named | {("3-cut.tar", "", "shard"), ("4-html.tar", "", "shard")}


def _write_duplicates(path: Path, samples: dict[str, Any]) -> None:
    """The first sample comes again at the end, with another picture."""
    write_shard(path, samples)
    path.with_name(path.name + ".clipx-index").unlink(missing_ok=True)
    with tarfile.open(path, "a") as tar:
        for extension, content in {"png": png(99), "txt": "again"}.items():
            data = as_bytes(content)
            member = path.with_name("member")
            member.write_bytes(data)
            tar.add(member, f"{next(iter(samples))}.{extension}")
            member.unlink()


def named(lines: list[dict[str, Any]]) -> Named:
    return {(Path(line["shard"]).name, line["key"], line["stage"]) for line in lines}


@pytest.fixture
def faulty(tmp_path: Path) -> tuple[Path, Named]:
    return tmp_path / "faulty", write_faulty_corpus(tmp_path / "faulty")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on 1 core
def test_every_fault_is_named_and_every_good_sample_is_seen(faulty: tuple[Path, Named]) -> None:
    """A shard vanishes after the corpus was opened, too."""
    folder, expected = faulty
    write_shard(folder / "5-gone.tar", {f"gone{n}": pair(n) for n in range(3)})
    source = batches(folder, global_batch_size=6, workers=2, max_bad_fraction=1.0)
    (folder / "5-gone.tar").unlink()
    total = source.corpus.num_samples
    assert total == len(GOOD) + len(FAULTS) + 1 + 3
    epoch = list(load(source, 0, total // 6 + 1))
    assert {key for loaded in epoch for key in loaded.keys} == set(GOOD)
    lines = [bad.record() for loaded in epoch for bad in loaded.bad]
    lines += [fault.record() for fault in source.corpus.faults]
    gone = {line["message"].split(":")[0] for line in lines if "5-gone" in str(line["shard"])}
    assert gone == {"sample 0", "sample 1", "sample 2"}
    assert named(lines) == expected | {("5-gone.tar", "", "read")}


def test_training_names_them_in_its_quarantine_and_a_skip_list_changes_nothing(
    faulty: tuple[Path, Named], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, expected = faulty
    data = {"shards": str(folder), "workers": 0, "streams": 4, "max_bad_fraction": 0.5}
    config = write_config(tmp_path / "a", folder, data=data, duration="3 epochs")
    cli.main(["train", str(config)])
    assert named(read(tmp_path / "a/run/quarantine.jsonl")) == expected
    said = capsys.readouterr().err
    assert "3-cut.tar: the tar ends early: the samples after its first 6 are missing" in said

    found = tmp_path / "bad.jsonl"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", "verify", str(config), f"--out={found}", "--workers=0"])
    assert stopped.value.code == 1
    assert named(read(found)) == expected
    assert "train with data.skip=" in capsys.readouterr().out

    again = write_config(tmp_path / "b", folder, data=data, duration="3 epochs")
    cli.main(["train", str(again), f"data.skip={found}"])
    left = {line for line in expected if line[2] in ("shard", "key")}
    assert named(read(tmp_path / "b/run/quarantine.jsonl")) == left
    runs = [metrics(tmp_path / name / "run") for name in ("a", "b")]
    for one, other in zip(*runs, strict=True):
        assert (one["fingerprint"], one["train/loss"]) == (
            other["fingerprint"],
            other["train/loss"],
        )


def test_a_corpus_where_nothing_is_usable_stops_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "c/0.tar", {f"{n}": {"jpg": "x", "cls": "3"} for n in range(50)})
    config = write_config(tmp_path, tmp_path / "c")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", str(config)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "64 samples in a row cannot be used" in said
    assert "no text in captions or txt; fields there: cls" in said
