"""What a run writes down of its corpus, and how it knows it again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from loading import batches
from samples import pair, write_shard
from tiny_runs import metrics, write_config
from tiny_runs import train as train_processes

from clipx.config import load as load_config
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.loader import load
from clipx.data.tar_index import load_index
from clipx.training.config import TrainConfig
from clipx.training.corpus import changes, corpus_messages, write_table
from clipx.training.trainer import train
from clipx.types import UserError

SIZES = (9, 20, 7)


def write_corpus(folder: Path, *, every_bad: int | None = None) -> Path:
    """Shards of these sizes; every so many-th sample has no image."""
    number = 0
    for shard, size in enumerate(SIZES):
        samples = {f"k{n:02d}": dict(pair(n)) for n in range(number, number + size)}
        for key, members in samples.items():
            if every_bad is not None and int(key[1:]) % every_bad == 0:
                members.pop("jpg", None)
                members |= {"png": b""}
        write_shard(folder / f"{shard}.tar", samples)
        number += size
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "shards")


def run(folder: Path, corpus: Path, *overrides: str, **changes: Any) -> Path:
    """Trains two steps in this process. Returns the run folder."""
    written = write_config(folder, corpus, **{"duration": "2 steps", **changes})
    train(load_config(TrainConfig, written, overrides))
    return folder / "run"


def quarantine(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


def table(folder: Path) -> list[tuple[str, int, str]]:
    return list(DataConfig(shards=str(folder)).open(seed=0).table())


# --- corpus.tsv ---


def test_a_run_writes_down_its_corpus(tmp_path: Path, shards: Path) -> None:
    text = (run(tmp_path, shards) / "corpus.tsv").read_text()
    digests = [load_index(shards / f"{n}.tar").head.digest for n in range(3)]
    assert text.splitlines() == [
        f"shards/{n}.tar\t{size}\t{digest}"
        for n, (size, digest) in enumerate(zip(SIZES, digests, strict=True))
    ]


ROWS = [("s/0.tar", 1000, "a"), ("s/1.tar", 20, "b"), ("s/2.tar", 30, "c")]


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (ROWS, "the same shards in another order"),
        (ROWS[::-1], "the same shards in another order"),
        ([*ROWS, ("s/3.tar", 1, "d")], "shards added: s/3.tar"),
        (ROWS[1:], "shards missing: s/0.tar"),
        (
            [("s/0.tar", 1200, "x"), *ROWS[1:]],
            "shards changed: s/0.tar (1,000 to 1,200 samples)",
        ),
        (
            [("s/0.tar", 1000, "x"), ("t/0.tar", 5, "a")],
            "shards added: t/0.tar; shards missing: s/1.tar, s/2.tar; "
            "shards changed: s/0.tar (1,000 to 1,000 samples)",
        ),
        (
            [*ROWS, *[(f"s/x{n}.tar", 1, "d") for n in range(7)]],
            "shards added: s/x0.tar, s/x1.tar, s/x2.tar, s/x3.tar, s/x4.tar and 2 more",
        ),
    ],
)
def test_changes_are_told_by_name(
    tmp_path: Path, now: list[tuple[str, int, str]], told: str
) -> None:
    write_table(tmp_path, ROWS)
    assert changes(tmp_path, now) == told
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.tsv"]


def test_names_may_be_equal_or_have_a_tab_or_be_no_utf8(tmp_path: Path) -> None:
    odd = [("s/a\tb.tar", 3, "z"), ("s/\udcff.tar", 4, "y"), ("s/\u2028.tar", 5, "x")]
    odd += [("s/a\n1.tar", 3, "w"), ("s/a\r2.tar", 3, "w")]
    write_table(tmp_path, [*odd, ("s/0.tar", 10, "a"), ("s/0.tar", 20, "b")])
    now = [*odd, ("s/0.tar", 15, "x"), ("s/0.tar", 20, "b")]
    assert changes(tmp_path, now) == "shards changed: s/0.tar (30 to 35 samples)"


def test_without_the_table_the_change_is_unknown(tmp_path: Path) -> None:
    assert "how it differs is unknown" in changes(tmp_path, ROWS)


@pytest.mark.parametrize("content", [b"\0" * 99, b"a\tmany\tb\n", b"a\n", b"1\t2\n"])
def test_with_a_damaged_table_the_change_is_unknown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "corpus.tsv").write_bytes(content)
    assert "how it differs is unknown, for" in changes(tmp_path, ROWS)


def test_a_table_from_before_digests_covered_contents_is_compared_by_layout(
    tmp_path: Path,
) -> None:
    write_table(tmp_path, ROWS)
    now = [(name, samples, f"{digest}:0123") for name, samples, digest in ROWS]
    assert changes(tmp_path, [*now, ("s/3.tar", 1, "d:4567")]) == "shards added: s/3.tar"


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.tsv cannot be written.*make room"):
        write_table(tmp_path / "missing", ROWS)


# --- another corpus ---


def test_another_corpus_is_refused_by_what_differs_and_accepted_on_request(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, shards)
    known = (folder / "corpus.tsv").read_text()
    write_shard(shards / "3.tar", {"new": pair(1)})
    (shards / "1.tar").unlink()
    with pytest.raises(UserError) as caught:
        run(tmp_path, shards, duration="3 steps")
    told = "shards added: shards/3.tar; shards missing: shards/1.tar"
    assert told in str(caught.value)
    assert "data.accept_changed_corpus=true" in str(caught.value)
    assert (folder / "corpus.tsv").read_text() == known
    run(tmp_path, shards, "data.accept_changed_corpus=true", duration="3 steps")
    said = capsys.readouterr().err
    assert told in said
    assert "Going on: in this epoch some samples come twice or not at all" in said
    assert [record["samples_seen"] for record in metrics(folder)] == [24, 48, 72]
    assert "shards/3.tar\t1\t" in (folder / "corpus.tsv").read_text()
    run(tmp_path, shards, duration="4 steps")  # this is the corpus now


def test_a_moved_corpus_needs_consent_for_its_path_and_is_the_same(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, shards)
    moved = shards.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"belongs to another config: data\.shards differ"):
        run(tmp_path, moved, duration="3 steps")
    run(tmp_path, moved, "data.accept_changed_corpus=true", duration="3 steps")
    assert "the corpus is not the one" not in capsys.readouterr().err


def test_other_contents_of_the_same_sizes_are_another_corpus(tmp_path: Path, shards: Path) -> None:
    run(tmp_path, shards)
    index = load_index(shards / "1.tar")
    offset = next(offset for name, offset, _ in index.members(1) if name in ("txt", "json"))
    data = bytearray((shards / "1.tar").read_bytes())
    data[offset + 3] ^= 1
    (shards / "1.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"shards changed: shards/1\.tar \(20 to 20 samples\)"):
        run(tmp_path, shards, duration="3 steps")


def test_a_run_may_go_on_with_a_decoded_cache(tmp_path: Path, shards: Path) -> None:
    """Its numbers are those of a run that decodes in each epoch."""
    plain = run(tmp_path, shards, duration="5 steps")
    losses = [record["train/loss"] for record in metrics(plain)]
    shutil.rmtree(plain)
    folder = run(tmp_path, shards)
    cache = f"data.decoded_cache={tmp_path / 'cache'}"
    run(tmp_path, shards, cache, duration="4 steps")
    run(tmp_path, shards, cache, duration="5 steps")
    assert [record["train/loss"] for record in metrics(folder)] == losses
    assert list((tmp_path / "cache").rglob("pixels-*"))


def test_a_copy_with_other_times_is_the_same_corpus(tmp_path: Path, shards: Path) -> None:
    folder = run(tmp_path, shards)
    for path in shards.glob("*.tar"):
        os.utime(path, ns=(1, 1))
    run(tmp_path, shards, duration="3 steps")
    assert [record["samples_seen"] for record in metrics(folder)] == [24, 48, 72]


def test_a_run_from_before_digests_covered_contents_goes_on(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(Corpus, "digest", Corpus.layout_digest)
        folder = run(tmp_path, shards)
    run(tmp_path, shards, duration="3 steps")
    assert [record["samples_seen"] for record in metrics(folder)] == [24, 48, 72]


def test_shards_may_have_any_name(tmp_path: Path, shards: Path) -> None:
    (shards / "1.tar").rename(shards / "a\n1.tar")
    (shards / "2.tar").rename(shards / os.fsdecode(b"caf\xe9.tar"))
    folder = run(tmp_path, shards)
    run(tmp_path, shards, duration="3 steps")
    assert [record["samples_seen"] for record in metrics(folder)] == [24, 48, 72]
    os.truncate(shards / "a\n1.tar", 20 * 1024)
    with pytest.raises(UserError, match=r"shards changed: shards/a\\n1\.tar \(20 to \d+ samples\)"):
        run(tmp_path, shards, duration="4 steps")


# --- the quarantine ---


def test_whole_shards_are_in_the_quarantine_once(tmp_path: Path, shards: Path) -> None:
    """The truncated one, and the one that is no tar; also after a resume."""
    os.truncate(shards / "0.tar", load_index(shards / "0.tar").members(6)[0][1] + 10)
    (shards / "x.tar").write_bytes(b"<html>" * 1000)
    data = {"shards": str(shards), "max_bad_fraction": 0.3}
    folder = run(tmp_path, shards, data=data)
    found = quarantine(folder)
    assert [(Path(line["shard"]).name, line["error"]) for line in found] == [
        ("0.tar", "TruncatedTar"),
        ("x.tar", "NotATar"),
    ]
    assert all((one["stage"], one["key"], one["position"]) == ("shard", "", -1) for one in found)
    run(tmp_path, shards, data=data, duration="3 steps")
    assert quarantine(folder) == found


def test_a_run_that_stops_by_its_bad_samples_has_written_all_of_them(tmp_path: Path) -> None:
    """The last batches come before no log line."""
    corpus = write_corpus(tmp_path / "bad", every_bad=3)
    data = {"shards": str(corpus), "max_bad_fraction": 0.2, "streams": 12, "window": 20_000}
    sizes: dict[str, Any] = {"global_batch_size": 264, "log_every": "10 steps"}
    with pytest.raises(UserError, match=r"of 528 samples are bad.*; see quarantine\.jsonl"):
        run(tmp_path, corpus, data=data, duration="9 steps", **sizes)
    source = batches(corpus, global_batch_size=264, streams=12, window=20_000, max_bad_fraction=1)
    expected = [{"step": 2, **bad.record()} for one in load(source, 0, 2) for bad in one.bad]
    assert len(expected) > 100
    assert quarantine(tmp_path / "run") == expected


def test_two_ranks_fill_one_quarantine(tmp_path: Path) -> None:
    """That of one process. Rank 0 writes at every second step what both have met."""
    corpus = write_corpus(tmp_path / "bad", every_bad=5)
    data = {"shards": str(corpus), "workers": 0, "streams": 4, "max_bad_fraction": 0.5}
    settings: dict[str, Any] = {"data": data, "log_every": "2 steps", "duration": "4 steps"}
    alone = quarantine(run(tmp_path / "alone", corpus, **settings))
    path = write_config(tmp_path / "together", corpus, **settings)
    train_processes(path, processes=2)
    together = quarantine(tmp_path / "together" / "run")
    assert sorted(together, key=lambda line: line["position"]) == alone
    assert {line["step"] for line in alone} == {2, 4}
    assert {line["key"] for line in alone} == {f"k{n:02d}" for n in range(0, 36, 5)}


# --- what a person is told ---


def test_what_is_special_of_a_corpus_is_told(tmp_path: Path, shards: Path) -> None:
    assert corpus_messages(DataConfig(shards=str(shards)).open(seed=0), 36) == []
    os.truncate(shards / "0.tar", load_index(shards / "0.tar").members(6)[0][1] + 10)
    lines = [
        {"shard": str(shards / "1.tar"), "key": "k10"},
        {"shard": str(shards / "1.tar"), "key": "k11"},
        {"shard": str(shards / "2.tar"), "key": "k30"},
        {"shard": "elsewhere.tar", "key": "k30"},
    ]
    (tmp_path / "skip.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = DataConfig(shards=str(shards), skip=str(tmp_path / "skip.jsonl")).open(seed=0)
    assert corpus_messages(corpus, 36) == [
        f"{shards / '0.tar'}: the tar ends early: the samples after its first 6 are missing",
        "3 samples are skipped by data.skip or data.reinforced",
        "1 lines of data.skip name shards that are not here",
        "the corpus has 33 pairs, a global batch 36: every batch repeats some",
    ]
