"""Patterns of remote shards, and the small files beside shards."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from faulty_server import FaultyServer
from s3_server import S3, running_s3

from clipx.data.remote import fetch_small, find, is_remote
from clipx.data.transfer import common, http, store
from clipx.data.transfer.common import Patience, ShardFile
from clipx.types import UserError

QUICK = Patience(attempts=3, stall_seconds=10.0, backoff_seconds=0.01)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        for name in ("b.tar", "a.tar", "notes.txt", "deeper/c.tar"):
            server.put(f"train/{name}", name.encode())
        for number in range(40):
            server.put(f"many/{number:05d}.tar", b"%d" % number)
        yield server


def urls(patterns: list[str]) -> list[str]:
    return [file.url for file in find(patterns, allow_pipe=False, patience=QUICK)]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("s3://bucket/a.tar", True),
        ("https://host/a.tar", True),
        ("hf://datasets/a/b/c.tar", True),
        ("pipe:cat a.tar", True),
        ("file:///data/a.tar", False),
        ("/data/a.tar", False),
        ("data/pipe:a.tar", False),
        ("data/*.tar", False),
    ],
)
def test_what_is_remote(text: str, answer: bool) -> None:
    assert is_remote(text) is answer


@pytest.mark.parametrize("pattern", ["train/*.tar", "train/", "train"])
def test_a_glob_and_a_folder_of_s3_give_the_sorted_shards(s3: S3, pattern: str) -> None:
    assert urls([f"s3://corpus/{pattern}"]) == [
        "s3://corpus/train/a.tar",
        "s3://corpus/train/b.tar",
    ]


def test_a_recursive_glob_of_s3_looks_into_folders(s3: S3) -> None:
    assert urls(["s3://corpus/train/**/*.tar"]) == [
        f"s3://corpus/train/{name}" for name in ("a.tar", "b.tar", "deeper/c.tar")
    ]


def test_patterns_keep_their_order(s3: S3) -> None:
    wanted = ["s3://corpus/train/b.tar", "s3://corpus/many/00003.tar", "s3://corpus/train/a.tar"]
    assert urls(wanted) == wanted


def test_s3_gives_size_etag_and_md5(s3: S3) -> None:
    digest = hashlib.md5(b"a.tar").hexdigest()
    wanted = ShardFile("s3://corpus/train/a.tar", size=5, stamp=digest, md5=digest)
    alone = find(["s3://corpus/train/a.tar"], allow_pipe=False)
    listed = find(["s3://corpus/train/"], allow_pipe=False)
    assert alone == [wanted]
    assert listed[0] == wanted


def test_an_upload_in_parts_has_a_stamp_but_no_md5(s3: S3) -> None:
    key = {"Bucket": s3.bucket, "Key": "parts/a.tar"}
    upload = s3.client.create_multipart_upload(**key)["UploadId"]
    part = s3.client.upload_part(**key, UploadId=upload, PartNumber=1, Body=b"x" * 10)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload=parts)
    [file] = find(["s3://corpus/parts/a.tar"], allow_pipe=False)
    assert (file.size, file.md5) == (10, "")
    assert file.stamp.endswith("-1")


def test_an_etag_of_a_directory_bucket_is_not_an_md5() -> None:
    info = {"size": 5, "ETag": '"0123456789abcdef0123456789abcdef"'}
    assert store.from_info("s3://bucket--x-s3/a.tar", info).md5 == ""
    assert store.from_info("s3://bucket/a.tar", info).md5 == "0123456789abcdef0123456789abcdef"


def test_many_shards_of_one_folder_take_one_request(s3: S3) -> None:
    wanted = [f"s3://corpus/many/{number:05d}.tar" for number in range(40)]
    s3.requests.clear()
    files = find(wanted, allow_pipe=False, patience=QUICK)
    assert [file.url for file in files] == wanted
    assert [file.size for file in files] == [len(str(number)) for number in range(40)]
    assert len(s3.requests) == 1


def test_shards_are_found_where_their_folder_may_not_be_listed(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(self: object, path: str, **more: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr("s3fs.S3FileSystem.ls", refusing)
    wanted = [f"s3://corpus/many/{number:05d}.tar" for number in range(40)]
    assert urls(wanted) == wanted


def test_a_missing_shard_among_many_is_named(s3: S3) -> None:
    wanted = [f"s3://corpus/many/{number:05d}.tar" for number in range(41)]
    with pytest.raises(UserError, match=r"s3://corpus/many/00040\.tar.*not found"):
        urls(wanted)


@pytest.mark.parametrize("pattern", ["none/*.tar", "none/", "none.tar"])
def test_a_pattern_without_a_match_in_s3_is_named(s3: S3, pattern: str) -> None:
    with pytest.raises(UserError, match=f"s3://corpus/{pattern}".replace("*", r"\*")):
        urls([f"s3://corpus/{pattern}"])


def test_a_web_server_gives_size_stamp_and_md5() -> None:
    content = b"x" * 1000
    with FaultyServer({"a.tar": content}, md5=True) as server:
        [file] = find([f"{server.url}/a.tar"], allow_pipe=False, patience=QUICK)
        assert server.log == [("HEAD", "a.tar", "")]
    assert (file.size, file.md5) == (1000, hashlib.md5(content).hexdigest())
    assert file.stamp == f'"{hashlib.sha1(content).hexdigest()}"'


def test_a_web_server_that_refuses_head_gets_a_range_request() -> None:
    with FaultyServer({"a.tar": b"x" * 1000}, md5=True) as server:
        server.script("a.tar", 403, head=True)
        [file] = find([f"{server.url}/a.tar?signature=1"], allow_pipe=False, patience=QUICK)
        assert server.gets("a.tar") == ["bytes=0-0"]
    assert (file.size, file.md5) == (1000, "")


def test_a_web_server_may_omit_the_size() -> None:
    with FaultyServer({"a.tar": b"x"}, lengths=False) as server:
        [file] = find([f"{server.url}/a.tar"], allow_pipe=False, patience=QUICK)
    assert file.size == -1


def test_finding_shards_survives_transient_failures() -> None:
    with FaultyServer({"a.tar": b"x"}) as server:
        server.script("a.tar", 500, 429, head=True)
        assert urls([f"{server.url}/a.tar"]) == [f"{server.url}/a.tar"]


@pytest.mark.parametrize(
    ("faults", "words"),
    [((404,), "not found"), ((500, 503, 500), "HTTP 500.*network")],
)
def test_a_web_server_without_the_shard_is_explained(faults: tuple[int, ...], words: str) -> None:
    with FaultyServer({"a.tar": b"x"}) as server:
        server.script("a.tar", *faults, head=True)
        with pytest.raises(UserError, match=rf"{server.url}/a\.tar.*{words}"):
            urls([f"{server.url}/a.tar"])


def test_a_forbidden_shard_is_explained() -> None:
    with FaultyServer({"a.tar": b"x"}) as server:
        server.script("a.tar", 403, head=True)
        server.script("a.tar", 403)
        with pytest.raises(UserError, match="not permitted; check the credentials"):
            urls([f"{server.url}/a.tar"])


@pytest.mark.parametrize("pattern", ["https://host/*.tar", "https://host/shards/"])
def test_a_web_server_cannot_be_listed(pattern: str) -> None:
    with pytest.raises(UserError, match=r"cannot be listed.*range"):
        urls([pattern])


def test_a_pipe_needs_permission() -> None:
    with pytest.raises(UserError, match=r"runs a shell.*allow_pipe: true"):
        urls(["pipe:cat a.tar"])
    files = find(["pipe:cat {a,b}.tar | gzip -d"], allow_pipe=True)
    assert files == [ShardFile("pipe:cat {a,b}.tar | gzip -d", size=-1, stamp="", md5="")]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import known_implementations

    absent = {"class": "absent_package.Files", "err": "Install absent_package to read this"}
    monkeypatch.setitem(known_implementations, "absent", absent)
    with pytest.raises(UserError, match=r"absent://.*pip install absent_package"):
        urls(["absent://bucket/*.tar"])


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(UserError, match=r"s33.*for example s3://"):
        urls(["s33://bucket/a.tar"])


def test_a_small_file_is_fetched_where_there_is_one(s3: S3) -> None:
    url = s3.put("train/sizes.json", b"{}")
    assert fetch_small(url) == b"{}"
    assert fetch_small("s3://corpus/train/none.json") is None
    assert fetch_small("pipe:cat sizes.json") is None
    with FaultyServer({"a.idx.npz": b"index"}) as server:
        server.script("a.idx.npz", 500, "reset")
        server.script("secret.npz", 403)
        assert fetch_small(f"{server.url}/a.idx.npz", patience=QUICK) == b"index"
        assert fetch_small(f"{server.url}/b.idx.npz", patience=QUICK) is None
        assert fetch_small(f"{server.url}/secret.npz", patience=QUICK) is None
        server.script("a.idx.npz", 500, 500, 500)
        with pytest.raises(OSError, match="HTTP 500"):
            fetch_small(f"{server.url}/a.idx.npz", patience=QUICK)


# --- Retry-After ---


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "7", 7.0),
        (503, "100000", 300.0),  # longer would look like a hang
        (503, "in a minute", 0.0),
        (503, "", 0.0),
        (500, "7", 0.0),
    ],
)
def test_retry_after_is_respected(
    monkeypatch: pytest.MonkeyPatch, status: int, header: str, seconds: float
) -> None:
    slept: list[float] = []
    really_sleep = time.sleep
    this_thread = threading.get_ident()

    def sleep(wait: float) -> None:
        # Threads of other tests of this process sleep as they did.
        if threading.get_ident() == this_thread:
            slept.append(wait)
        else:
            really_sleep(wait)

    monkeypatch.setattr(common.time, "sleep", sleep)
    with FaultyServer({"a": b"content"}) as server:
        server.retry_after = header
        server.script("a", status, status)
        assert fetch_small(f"{server.url}/a", patience=QUICK) == b"content"
    assert len(slept) == 2
    for number, wait in enumerate(slept):
        assert 0.5 * 0.01 * 2**number <= wait - seconds <= 1.5 * 0.01 * 2**number


def test_retry_after_may_be_a_date() -> None:
    def seconds(delta: float) -> float:
        date = datetime.now(UTC) + timedelta(seconds=delta)
        return http.retry_after(format_datetime(date, usegmt=True))

    assert 58 <= seconds(60) <= 60
    assert seconds(-60) == 0
    assert http.retry_after("Sun, 99 Foo 2026 25:00:00 GMT") == 0
