"""A corpus behind a network gives the batches of the same corpus on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FaultyServer
from loading import batch, batches, same
from s3_server import S3, running_s3
from samples import write_corpus

from clipx.data.loader import Batches, load
from clipx.data.shard_cache import ShardCache
from clipx.data.sources import webdataset
from clipx.data.transfer.common import Patience
from clipx.types import UserError

SIZES = (5, 1, 7, 4)
pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create",  # on 1 core
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore::DeprecationWarning:botocore",
    "ignore::DeprecationWarning:aiobotocore",
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = Patience(attempts=5, stall_seconds=0.5, backoff_seconds=0.01)
    monkeypatch.setattr(webdataset, "ShardCache", partial(ShardCache, patience=patience))


@pytest.fixture
def local(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "local", SIZES)
    return tmp_path / "local"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        yield server


def remote(
    shards: Any, cache: Path, *, gib: float = 1.0, workers: int = 0, **settings: Any
) -> Batches:
    source = {"name": "webdataset", "shards": shards, "cache_dir": str(cache), "cache_gib": gib}
    return batches(None, sources={"x": source | settings}, workers=workers, flip=0.5)


def assert_same_batches(source: Batches, local: Path, *, first: int = 0) -> None:
    expected = batches(local, flip=0.5)
    for k, loaded in enumerate(load(source, first, 9), first):
        assert same(loaded, batch(expected, k))


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pattern", ["{base}/*.tar", "{base}/", "{base}/{{00000..00003}}.tar"])
def test_s3(s3: S3, local: Path, tmp_path: Path, pattern: str, workers: int) -> None:
    for name, content in tars(local).items():
        s3.put(f"a/{name}", content)
    shards = pattern.format(base=f"s3://{s3.bucket}/a")
    source = remote(shards, tmp_path / "cache", workers=workers)
    assert source.corpus.is_remote
    assert_same_batches(source, local)
    assert_same_batches(remote(shards, tmp_path / "cache", workers=workers), local, first=5)


FAULTS = {
    "none": [],
    "errors": [500, 503, 429],
    "stalls": ["stall", "stall midway"],
    "truncates": ["truncate", "truncate"],
    "resets": ["reset", 502, "reset"],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("workers", [0, 1])
def test_http(local: Path, tmp_path: Path, fault: str, workers: int) -> None:
    files = tars(local)
    with FaultyServer(files) as server:
        # A stall is waited for, so that one shard has them.
        faulty = list(files)[:1] if fault == "stalls" else list(files)
        for name in faulty:
            server.script(name, *FAULTS[fault])
        shards = f"{server.url}/{{00000..00003}}.tar"
        source = remote(shards, tmp_path / "cache", workers=workers)
        assert_same_batches(source, local)
        # Each shard was downloaded once, by any number of workers: one GET and one for each fault.
        for name in files:
            assert len(server.gets(name)) == 1 + (name in faulty) * len(FAULTS[fault])


def test_wrong_bytes_are_detected_by_the_checksum_of_the_server(
    local: Path, tmp_path: Path
) -> None:
    with FaultyServer(tars(local), md5=True) as server:
        server.script("00002.tar", "wrong bytes")
        shards = f"{server.url}/{{00000..00003}}.tar"
        assert_same_batches(remote(shards, tmp_path / "cache"), local)


def test_a_run_with_sizes_json_starts_without_downloads(local: Path, tmp_path: Path) -> None:
    files = tars(local)
    sizes = dict(zip(sorted(files), SIZES, strict=True))
    with FaultyServer({**files, "sizes.json": json.dumps(sizes).encode()}) as server:
        source = remote(f"{server.url}/{{00000..00003}}.tar", tmp_path / "cache")
        assert not any(server.gets(name) for name in files)
        assert_same_batches(source, local)


def test_samples_that_sizes_json_counts_in_excess_are_bad(local: Path, tmp_path: Path) -> None:
    files = tars(local)
    sizes = dict(zip(sorted(files), (5, 1, 9, 4), strict=True))
    with FaultyServer({**files, "sizes.json": json.dumps(sizes).encode()}) as server:
        source = remote(f"{server.url}/{{00000..00003}}.tar", tmp_path / "cache")
        bad = [b for k in range(3) for b in batch(source, k).bad]
    assert {(b.stage, b.shard[-9:]) for b in bad} == {("read", "00002.tar")}
    assert all("sizes.json counts 9 samples, the tar has 7" in b.message for b in bad)


def test_a_cache_of_two_shards_serves_a_corpus_of_four(local: Path, tmp_path: Path) -> None:
    files = tars(local)
    room = 2.5 * max(map(len, files.values())) / 2**30
    with FaultyServer(files) as server:
        source = remote(f"{server.url}/{{00000..00003}}.tar", tmp_path / "cache", gib=room)
        assert_same_batches(source, local)
    kept = sum(p.stat().st_size for p in (tmp_path / "cache").iterdir())
    assert kept <= room * 2**30


def test_a_shard_that_is_gone_while_training_is_quarantined(local: Path, tmp_path: Path) -> None:
    files = tars(local)
    sizes = dict(zip(sorted(files), SIZES, strict=True))
    with FaultyServer({**files, "sizes.json": json.dumps(sizes).encode()}) as server:
        source = remote(f"{server.url}/{{00000..00003}}.tar", tmp_path / "cache")
        del server.files["00002.tar"]
        loaded = [batch(source, k) for k in range(3)]
    assert {b.stage for one in loaded for b in one.bad} == {"read"}
    assert {b.shard[-9:] for one in loaded for b in one.bad} == {"00002.tar"}
    assert {key for one in loaded for key in one.keys} == {
        f"k{n:02d}" for n in range(17) if not 6 <= n < 13
    }
    assert len(server.gets("00002.tar")) <= 2  # by the prefetch and by the reader; then it rests


def test_a_permitted_pipe_is_a_shard_like_others(local: Path, tmp_path: Path) -> None:
    shards = [f"pipe:cat {path}" for path in sorted(local.glob("*.tar"))]
    with pytest.raises(UserError, match=r"(?s)pipe:cat.*allow_pipe: true"):
        remote(shards, tmp_path / "cache")
    assert_same_batches(remote(shards, tmp_path / "cache", allow_pipe=True), local)
