"""Embeddings in a collection of Qdrant are found as those of their folder are."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_server
import torch
from embedded import embed_corpus
from qdrant_client import QdrantClient
from qdrant_server import Faults, Server
from samples import pair, write_shard

from clipx import cli
from clipx.progress import silent
from clipx.search import qdrant_connection, qdrant_upload
from clipx.search.qdrant_connection import QdrantConnection
from clipx.search.qdrant_record import read_record
from clipx.search.qdrant_store import QdrantStore
from clipx.search.qdrant_upload import QdrantUpload
from clipx.search.query import Index
from clipx.types import UserError

NUM_SAMPLES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of 40 samples, one with a NaN and one without a caption."""
    root = tmp_path_factory.mktemp("qdrant")
    samples: dict[str, Any] = {}
    for n in range(NUM_SAMPLES):
        about: dict[str, Any] = {"price": n, "shop": "Here" if n % 2 else "there", "new": n < 9}
        if n % 3:
            about["weight"] = n / 2 if n != 4 else float("nan")
        samples[f"k{n:02d}"] = {**pair(n), "json": about, "txt": f"picture {n}"}
    del samples["k07"]["txt"]
    write_shard(root / "corpus/0.tar", samples)
    return embed_corpus(root, "--part-size", "25", "--precision", "fp32")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "qdrant").mkdir()
    with Server(tmp_path / "qdrant") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another without a wait, and batches are small."""
    monkeypatch.setattr(qdrant_connection, "LONG_WAITS", (0.0,) * 5)
    monkeypatch.setattr(qdrant_connection, "SHORT_WAITS", (0.0,) * 2)
    monkeypatch.setattr(qdrant_upload, "PART", 15)
    monkeypatch.setattr(qdrant_upload, "BATCH", 4)


def upload(folder: Path, url: str, *arguments: str) -> None:
    cli.main(["index", str(folder), "--to", url, *arguments])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    assert end.value.code == 2
    return capsys.readouterr().err


def without_nan(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if value == value}


@pytest.mark.parametrize("quantization", ["none", "int8", "binary"])
def test_a_collection_finds_what_its_folder_finds(
    folder: Path, server: Server, quantization: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.url("demo")
    upload(folder, url, "--quantization", quantization)
    assert f"{url}: 40 points, 40 of them uploaded" in capsys.readouterr().out
    body = server.collections["demo"].body
    assert body["vectors"]["on_disk"] == (quantization != "none")
    assert body["vectors"]["datatype"] == "float16"
    local = Index.open(folder)
    remote = Index.open(url, model=local.encoder)
    expected = local.search(text="picture 3", k=5)
    found = remote.search(text="picture 3", k=5)
    if quantization != "binary":  # 16 dimensions are few for a bit each
        assert [hit.row for hit in found] == [hit.row for hit in expected]
    for hit in found:
        assert hit.metadata == without_nan(local.metadata_of(hit.row))
        own = local.store.vectors([hit.row])[0] @ local.encoder.encode_text("picture 3")[0]
        # Qdrant rounds the query to float16 too.
        assert hit.score == pytest.approx(own.item(), abs=2e-4)
    torch.testing.assert_close(
        remote.store.vectors([3, 1]), local.store.vectors([3, 1]), rtol=0, atol=1e-7
    )
    assert remote.store.missing([39, 40, 0]) == [40]


CONDITIONS = [
    "price < 3",
    "price >= 38",
    "price = 7",
    "price != 7 and price < 9",
    "shop = Here",
    "shop ~ HER",
    "not shop ~ THER",
    "not shop = Here and price <= 4",
    "weight = 2.5",
    "weight > 18",
    "weight != 3.5 and price < 9",
    "not weight = 3.5 and price < 9",
    "new = true",
    "not new != false and price > 36",
    "caption ~ 'Picture 1'",
    "caption != 'picture 3' and price < 9",
]


@pytest.mark.parametrize("engine", ["edge", "local mode"])
def test_conditions_mean_the_same_in_both(folder: Path, server: Server, engine: str) -> None:
    connection = QdrantConnection.open(server.url("demo"))
    if engine == "local mode":
        connection = QdrantConnection(QdrantClient(":memory:"), "demo", "in memory")
    QdrantUpload(connection, folder, "image").run(silent)
    remote = Index(QdrantStore(connection, read_record(connection)))
    local = Index.open(folder)
    vector = torch.ones(local.manifest.embed_dim)
    for condition in CONDITIONS:
        if engine == "edge" and condition.startswith(("new", "not new")):
            continue  # the Python binding of the engine makes an integer of a boolean
        expected = {row for row, _ in local.nearest(vector, 40, where=condition)}
        if "weight" in condition and "3.5" in condition:
            expected.discard(4)  # its weight is NaN, which JSON does not have
        found = {row for row, _ in remote.nearest(vector, 40, where=condition)}
        assert found == expected, condition
        assert found, condition


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("prise < 3", "there is no column prise; there are key, caption"),
        ("price < cheap", "price is int64, not 'cheap'"),
        ("shop < here", "shop is string, and Qdrant orders numbers alone"),
        ("price ~ 3", "price is int64, and in Qdrant ~ compares texts alone"),
    ],
)
def test_a_condition_that_qdrant_does_not_have_is_refused(
    folder: Path, server: Server, condition: str, message: str
) -> None:
    upload(folder, server.url("demo"))
    remote = Index.open(server.url("demo"))
    with pytest.raises(UserError, match=message):
        remote.nearest(torch.ones(16), 3, where=condition)


def test_the_command_line_searches_a_collection(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(folder, server.url("demo"))
    capsys.readouterr()
    outputs = []
    for source in (str(folder), server.url("demo")):
        cli.main(["search", source, "picture 3", "-k", "3", "--json", "--where", "price > 5"])
        outputs.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert len(outputs[0]) == 3
    for line in outputs[0]:
        line["score"] = pytest.approx(line["score"], abs=2e-4)
    assert outputs[0] == outputs[1]


def test_captions_are_a_collection_of_their_own(folder: Path, server: Server) -> None:
    upload(folder, server.url("texts"), "--of", "text")
    texts = Index.open(server.url("texts"), modality="text")
    assert texts.search(text="picture 11", k=1)[0].metadata["caption"] == "picture 11"
    assert texts.store.missing([7, 8]) == [7], "it has no caption"
    with pytest.raises(UserError, match="has embeddings of texts, not of images"):
        Index.open(server.url("texts"))


@pytest.mark.usefixtures("quick")
def test_an_upload_that_failed_goes_on_where_it_stopped(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.url("demo")
    connection = QdrantConnection.open(url)
    half = QdrantUpload(connection, folder, "image")
    half._create()
    half._upsert(np.arange(22))
    capsys.readouterr()
    upload(folder, url)
    # Rows 0 to 14 are a part that is whole.
    assert "40 points, 25 of them uploaded" in capsys.readouterr().out
    upload(folder, url)
    assert "40 points, 0 of them uploaded" in capsys.readouterr().out
    local = Index.open(folder)
    expected = local.store.vectors(range(NUM_SAMPLES))
    remote = Index.open(url).store.vectors(range(NUM_SAMPLES))
    torch.testing.assert_close(remote, expected, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("quick")
def test_removed_rows_leave_the_collection_and_come_back(
    folder: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    url = server.url("demo")
    upload(copy, url)
    (tmp_path / "keys.txt").write_text("k03\nk11\n")
    cli.main(["index", str(copy), "--remove", str(tmp_path / "keys.txt"), "--to", url])
    assert "38 points, 0 of them uploaded" in capsys.readouterr().out
    remote = Index.open(url)
    rows = {row for row, _ in remote.nearest(torch.ones(16), 40)}
    assert rows == set(range(40)) - {3, 11}
    with pytest.raises(UserError, match=r"has no rows \[3\] any more"):
        remote.metadata_of(3)
    cli.main(["index", str(copy), "--restore", "--to", url])
    assert "40 points, 15 of them uploaded" in capsys.readouterr().out
    assert remote.store.missing([3]) == []


@pytest.mark.usefixtures("quick")
def test_another_model_is_refused(
    folder: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.url("demo")
    upload(folder, url)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"model_digest": "ab"}))
    before = len(server.requests)
    message = refusal(capsys, "index", str(copy), "--to", url)
    assert "has embeddings of something else: model_digest" in message
    assert not [line for line in server.requests[before:] if line.startswith("PUT")]
    message = refusal(capsys, "index", str(folder), "--of", "text", "--to", url)
    assert "modality image there, text here" in message
    message = refusal(capsys, "index", str(folder), "--quantization", "int8", "--to", url)
    assert "has quantization none, not int8" in message
    message = refusal(capsys, "index", str(folder), "--quantization", "int8")
    assert "go with --to URL, which is missing" in message
    server.collections["demo"].body["metadata"] = None
    assert "a collection of something else" in refusal(capsys, "index", str(folder), "--to", url)
    assert "a collection of something else" in refusal(capsys, "search", url, "a car")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "faults",
    [
        Faults(status=500),
        Faults(status=503, body=b"<html>gateway</html>"),
        Faults(status=429, headers={"Retry-After": "0"}),
        Faults(closes=True),
    ],
    ids=["500", "503 of a proxy", "429", "closed"],
)
def test_failures_that_pass_are_outlasted(folder: Path, server: Server, faults: Faults) -> None:
    connection = QdrantConnection.open(server.url("demo"), waits=(0.0,) * 3)
    uploading = QdrantUpload(connection, folder, "image")
    server.faults = faults
    faults.count = 3
    assert uploading.run(silent).num_points == NUM_SAMPLES


@pytest.mark.usefixtures("quick")
def test_failures_that_stay_are_one_message(
    folder: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = server.url("demo")
    upload(folder, url)
    server.faults = Faults(count=1000)
    assert f"{url} answers 500: out of memory" in refusal(capsys, "search", url, "a car")
    server.faults = Faults(count=1000, status=502, body=b"<html>")
    assert "answers 502: Bad Gateway" in refusal(capsys, "index", str(folder), "--to", url)
    server.faults = Faults(count=1000, closes=True)
    message = refusal(capsys, "search", url, "a car")
    assert f"{url} cannot be reached" in message
    server.faults = Faults(count=1000, seconds=0.2)
    monkeypatch.setattr(qdrant_connection, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(qdrant_connection, "SHORT_WAITS", ())
    message = refusal(capsys, "index", str(folder), "--to", url)
    assert "cannot be reached" in message
    server.faults = Faults()


@pytest.mark.usefixtures("quick")
def test_a_host_that_is_not_there_is_named_with_the_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/demo"
    for command in (["index", str(folder), "--to", url], ["search", url, "a car"]):
        message = refusal(capsys, *command)
        assert f"{url} cannot be reached" in message
        assert "check the address, and that Qdrant runs there" in message


def test_the_key_is_sent_and_never_printed(
    folder: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.key = "a-secret-key"
    url = server.url("demo")
    message = refusal(capsys, "index", str(folder), "--to", url)
    assert f"{url} refuses access (401): set QDRANT_API_KEY" in message
    monkeypatch.setenv("QDRANT_API_KEY", "another-secret")
    message = refusal(capsys, "search", url, "a car")
    assert "refuses access (401)" in message
    assert "secret" not in message
    monkeypatch.setenv("QDRANT_API_KEY", "a-secret-key")
    upload(folder, url)
    output = capsys.readouterr()
    assert "40 points" in output.out
    assert "secret" not in output.out + output.err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://localhost:6333", "is not the URL of a collection"),
        ("http://localhost:6333/a b", "is not the URL of a collection"),
        ("http://user:hidden@localhost:6333/demo", "has no user"),
        ("http://localhost:6333/demo?api-key=hidden", "has no user and no ?"),
        ("http://localhost:66333/demo", "is not the URL of a collection"),
    ],
)
def test_other_urls_are_refused(
    folder: Path, url: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "index", str(folder), "--to", url)
    assert message in said
    assert "hidden" not in said


def test_without_the_client_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    message = refusal(capsys, "index", str(folder), "--to", "http://localhost:6333/demo")
    assert "pip install 'clipx-train[search,qdrant]'" in message


def start_server(folder: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, qdrant_server.__file__, str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == str(port)
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_server_killed_and_started_again_during_an_upload_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_upload, "BATCH", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    storage = tmp_path / "storage"
    storage.mkdir()
    process = start_server(storage, port)
    connection = QdrantConnection.open(f"http://127.0.0.1:{port}/demo", waits=(0.2,) * 50)
    uploading = QdrantUpload(connection, folder, "image")
    counts: list[Any] = []
    thread = threading.Thread(target=lambda: counts.append(uploading.run(silent)))
    try:
        thread.start()
        deadline = time.monotonic() + 30
        while not list(storage.glob("*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.05)
        end(process)
        process = start_server(storage, port)
        thread.join(60)
        assert counts == [qdrant_upload.UploadCounts(NUM_SAMPLES, NUM_SAMPLES, NUM_SAMPLES)]
        remote = Index.open(f"http://127.0.0.1:{port}/demo")
        expected = Index.open(folder).store.vectors(range(NUM_SAMPLES))
        torch.testing.assert_close(
            remote.store.vectors(range(NUM_SAMPLES)), expected, rtol=0, atol=1e-7
        )
    finally:
        end(process)


def test_what_reads_all_embeddings_needs_the_folder(folder: Path, server: Server) -> None:
    upload(folder, server.url("demo"))
    with pytest.raises(UserError, match="this reads all embeddings: give the folder"):
        _ = Index.open(server.url("demo")).rows


@pytest.mark.usefixtures("quick")
def test_tasks_share_an_upload(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of parts of 15 rows, the first and the third are of one task."""
    url = server.url("demo")
    upload(folder, url, "--task", "1/2")
    output = capsys.readouterr().out
    assert "25 points, 25 of them uploaded" in output
    assert "this task is done; others have 15 to upload" in output
    upload(folder, url, "--task", "2/2")
    output = capsys.readouterr().out
    assert "40 points, 15 of them uploaded" in output
    assert "others" not in output
    assert "--task 3/2 is not I/N" in refusal(
        capsys, "index", str(folder), "--to", url, "--task", "3/2"
    )
