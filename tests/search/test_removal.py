"""Removed pictures are found by no kind of search, and their embeddings stay as they are."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedded import embed_corpus
from samples import pair, write_shard

from clipx import cli
from clipx.search import build_index
from clipx.search import exact as exact_search
from clipx.search.query import Index
from clipx.search.vector_index import Kind, VectorIndex, spec_of

NUM_ROWS = 320


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("removal")
    for shard in range(2):
        samples: dict[str, Any] = {}
        for n in range(NUM_ROWS // 2):
            # The first keys are in both shards.
            key = f"k{n}" if n < 3 else f"k{shard}-{n}"
            samples[key] = pair(n + 200 * shard)
        write_shard(root / f"corpus/{shard}.tar", samples)
    return embed_corpus(root, "--precision", "fp32", "data.workers=0")


@pytest.fixture
def folder(made: Path) -> Path:
    """Without a list and an index."""
    for name in ("removed.jsonl", "image.index", "image_index.json"):
        (made / name).unlink(missing_ok=True)
    return made


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".npy", ".parquet"):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def index(folder: Path, *arguments: str | Path) -> None:
    cli.main(["index", str(folder), *map(str, arguments)])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, arguments)])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "ivfpq"])
def test_removed_rows_never_come_up(folder: Path, tmp_path: Path, kind: str) -> None:
    before = digests(folder)
    index(folder, "--kind", kind, "--recall", "0.5")
    removed = list(range(5, 300, 7))
    keys = [Index.open(folder).metadata_of(row)["key"] for row in removed]
    (tmp_path / "keys").write_text("\n".join(keys) + "\n")
    index(folder, "--remove", tmp_path / "keys")
    kept = set(range(NUM_ROWS)) - set(removed)
    for again in range(2):
        for exact in (False, True):
            opened = Index.open(folder, exact=exact)
            for query in torch.eye(opened.manifest.embed_dim):
                rows = [row for row, _ in opened.nearest(query, NUM_ROWS)]
                assert set(rows) <= kept
                if exact or kind == "exact":
                    assert len(rows) == len(kept)
                filtered = {row for row, _ in opened.nearest(query, 20, where="width > 1")}
                assert len(filtered & kept) == 20
        if not again:
            index(folder, "--kind", kind, "--recall", "0.5")  # the list outlives the index
    assert digests(folder) == before
    index(folder, "--restore")
    assert not (folder / "removed.jsonl").exists()
    opened = Index.open(folder, exact=True)
    assert {row for row, _ in opened.nearest(query, NUM_ROWS)} == set(range(NUM_ROWS))


def test_recall_is_measured_among_the_rows_that_are_kept(folder: Path, tmp_path: Path) -> None:
    """By an index that finds all: those removed count neither as found nor as missed."""
    (tmp_path / "keys").write_text("".join(f"k0-{n}\n" for n in range(3, 150)))
    index(folder, "--remove", tmp_path / "keys")
    index(folder, "--kind", "ivf", "--recall", "0.99")
    about = json.loads((folder / "image_index.json").read_text())
    assert about["measured"]["recall"] >= 0.99


def test_counts_are_exact(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    (tmp_path / "keys").write_text("k0\nk0-5\nnowhere\n\nk0-5\n")
    index(folder, "--remove", tmp_path / "keys")
    output = capsys.readouterr().out
    assert "3 of 3 keys are new in the list" in output
    assert "there is no embedding here for 1 of them, first nowhere" in output
    assert f"{folder}: 3 of 320 embeddings are removed" in output, "k0 is in both shards"
    (tmp_path / "more").write_text("k0-5\nk0-6\n")
    index(folder, "--remove", tmp_path / "more")
    assert "1 of 2 keys are new in the list" in capsys.readouterr().out
    index(folder, "--restore", tmp_path / "more")
    output = capsys.readouterr().out
    assert "2 of 2 keys are taken back" in output
    assert "2 of 320 embeddings are removed" in output


def test_a_skip_list_names_the_shard(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = Index.open(folder).metadata_of(0)["shard"]
    # From another folder, and with lines that name no bad sample, as quarantine files have.
    other_name = os.path.relpath(shard)
    assert other_name != shard
    lines = [
        {"shard": other_name, "key": "k0", "stage": "image", "error": "x"},
        {"shard": other_name, "key": "k1", "stage": "key", "error": "repeated"},
        {"shard": other_name, "key": None, "stage": "shard", "error": "torn"},
    ]
    (tmp_path / "skip.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index(folder, "--remove", tmp_path / "skip.jsonl")
    assert "1 of 320 embeddings are removed" in capsys.readouterr().out
    assert Index.open(folder).store.missing(range(NUM_ROWS)) == [0]
    index(folder, "--restore", tmp_path / "skip.jsonl")
    assert "0 of 320 embeddings are removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no keys; give one a line"),
        (b"\xff\xfe\x00", "cannot be read as a list of keys"),
        (b'k0\n{"shard": "a"}\n', "line 2 is no JSON with `key` and `shard`"),
        (b'{"key": 3}', "key 3 and shard None have to be texts"),
    ],
)
def test_a_list_that_cannot_be_read_changes_nothing(
    folder: Path,
    tmp_path: Path,
    content: bytes,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "keys").write_bytes(content)
    assert message in refusal(capsys, "index", folder, "--remove", tmp_path / "keys")
    assert not (folder / "removed.jsonl").exists()
    message = refusal(capsys, "index", folder, "--remove", tmp_path / "none")
    assert "cannot be read as a list of keys" in message


def test_an_index_of_removed_rows_alone_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = Index.open(folder).store.table.column("key").to_pylist()
    (tmp_path / "keys").write_text("\n".join(keys) + "\n")
    index(folder, "--remove", tmp_path / "keys")
    assert Index.open(folder).nearest(torch.ones(16), 5) == []
    assert Index.open(folder).nearest(torch.ones(16), 5, where="width > 1") == []


def test_queries_of_images_are_those_that_are_kept() -> None:
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(40, 8), dim=1).numpy()
    removed = np.arange(0, 40, 2)
    chosen = build_index.build_index(rows, None, kind="hnsw", recall=0.5, removed=removed)
    assert set(np.flatnonzero(~chosen.index.kept)) == set(removed)
    assert chosen.measured.recall == 1


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_an_index_of_which_most_is_removed_still_finds_what_is_left(kind: Kind) -> None:
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(3000, 8), dim=1).numpy()
    built = VectorIndex.build(spec_of(kind, 3000, 8, effort=16), rows)
    kept = np.arange(0, 3000, 50)
    index = built.without(np.setdiff1d(np.arange(3000), kept))
    queries = torch.nn.functional.normalize(torch.randn(20, 8), dim=1)
    _, found = index.search(queries, 10)
    assert np.isin(found.numpy(), kept).all()
    exact = exact_search.nearest_rows(queries, rows, 10, among=np.flatnonzero(index.kept))[1]
    assert (exact[:, :, None] == found[:, None, :]).any(2).float().mean() > 0.9


def test_removed_rows_are_neither_recommended_nor_unusual(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*arguments: str) -> set[str]:
        capsys.readouterr()
        cli.main([arguments[0], str(folder), *arguments[1:], "--json"])
        return {json.loads(line)["key"] for line in capsys.readouterr().out.splitlines()}

    verbs = [
        ("recommend", "--like-row", "9", "-k", "20"),
        ("recommend", "--like-row", "9", "-k", "20", "--strategy", "best"),
        ("recommend", "--like-row", "9", "--strategy", "best", "--where", "width > 1"),
        ("anomaly", "--top", "20"),
        ("anomaly", "--top", "20", "--captions"),
    ]
    before = [shown(*verb) for verb in verbs]
    unwanted = set.union(*before)
    (tmp_path / "keys").write_text("\n".join(unwanted) + "\n")
    index(folder, "--remove", tmp_path / "keys")
    for verb, old in zip(verbs, before, strict=True):
        found = shown(*verb)
        assert len(found) == len(old), verb
        assert not found & unwanted, verb

    num_kept = NUM_ROWS - len(Index.open(folder).store.missing(range(NUM_ROWS)))
    cli.main(["dedup", str(folder), "--threshold", "0.5"])
    cli.main(["cluster", str(folder), "--clusters", "3", "--out", str(tmp_path / "out.jsonl")])
    assert capsys.readouterr().out.count(f"{num_kept} pictures") == 2
    listed = [folder / "duplicates.groups.jsonl", tmp_path / "out.jsonl"]
    groups, clustered = ([json.loads(line) for line in p.read_text().splitlines()] for p in listed)
    grouped = {sample["key"] for group in groups for sample in group["kept"] + group["dropped"]}
    assert grouped
    assert not grouped & unwanted
    opened = Index.open(folder)
    assert len(clustered) == num_kept
    for line in clustered:
        assert opened.metadata_of(line["row"])["key"] == line["key"]
        assert line["key"] not in unwanted
