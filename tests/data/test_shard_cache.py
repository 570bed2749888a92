"""The local cache of remote shards: its files are whole, bounded in size and downloaded once."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from faulty_server import FaultyServer
from s3_server import S3, running_s3

from clipx.data import eviction
from clipx.data.remote import find
from clipx.data.shard_cache import ShardCache
from clipx.data.transfer.common import Patience, ShardFile
from clipx.types import UserError

QUICK = Patience(attempts=2, stall_seconds=10.0, backoff_seconds=0.01)
SHORT = Patience(attempts=2, stall_seconds=0.5, backoff_seconds=0.01)  # where a stall is waited for
MIB = 1 << 20
BODY = bytes(range(256)) * 4000  # a bit less than a MiB
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer({f"{letter}.tar": BODY + letter.encode() for letter in "abcdef"}) as running:
        yield running


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as running:
        yield running


def cache_in(
    folder: Path, limit: int = 100 * MIB, patience: Patience = QUICK, **settings: int
) -> ShardCache:
    return ShardCache(folder / "cache", limit, patience=patience, **settings)


def path_of(cache: ShardCache, file: ShardFile) -> Path:
    """Its path in the cache, after it was downloaded if need be."""
    os.close(cache.open(file))
    return cache.place(file)


def file_at(server: FaultyServer, letter: str = "a") -> ShardFile:
    [file] = find([f"{server.url}/{letter}.tar"], allow_pipe=False, patience=QUICK)
    return file


def names(cache: ShardCache) -> list[str]:
    """Of the files in the cache, without their hashes; partial ones included."""
    return sorted(p.name.rpartition("-")[2] for p in cache.folder.glob("[!.]*"))


def partial(cache: ShardCache) -> bool:
    return any(cache.folder.glob("part-*"))


def contents(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):  # of a busy machine, 5 s were not enough for a process to end
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition is not true after 30 s")


def test_a_file_is_downloaded_once(tmp_path: Path, server: FaultyServer) -> None:
    cache, file = cache_in(tmp_path), file_at(server)
    path = path_of(cache, file)
    assert path.read_bytes() == server.files["a.tar"]
    assert path.name.endswith("-a.tar")
    assert path_of(cache_in(tmp_path), file) == path
    assert contents(cache.open(file)) == server.files["a.tar"]
    assert server.gets("a.tar") == [""]
    assert names(cache) == ["a.tar"]
    assert [p.name for p in cache.folder.glob(".*")] == [".lock"]


@pytest.mark.parametrize("fault", [500, 429, "stall", "reset", "truncate", "stall midway"])
def test_a_transient_fault_is_survived(
    tmp_path: Path, server: FaultyServer, fault: int | str
) -> None:
    server.script("a.tar", fault)
    cache = cache_in(tmp_path, patience=SHORT)
    assert path_of(cache, file_at(server)).read_bytes() == server.files["a.tar"]
    assert len(server.gets("a.tar")) == 2
    assert names(cache) == ["a.tar"]


def test_a_download_resumes_where_it_broke_off(tmp_path: Path, server: FaultyServer) -> None:
    server.script("a.tar", "truncate", 500)
    patience = Patience(attempts=3, backoff_seconds=0.01)
    path_of(cache_in(tmp_path, patience=patience), file_at(server))
    half = (len(BODY) + 1) // 2
    assert server.gets("a.tar") == ["", f"bytes={half}-", f"bytes={half}-"]


def test_a_server_without_ranges_sends_all_again(tmp_path: Path, server: FaultyServer) -> None:
    server.ranges = False
    server.script("a.tar", "truncate")
    assert path_of(cache_in(tmp_path), file_at(server)).read_bytes() == server.files["a.tar"]


@pytest.mark.parametrize("fault", [500, "stall", "reset", "truncate", "wrong bytes"])
def test_a_persistent_fault_is_raised_with_the_url(
    tmp_path: Path, server: FaultyServer, fault: int | str
) -> None:
    server.ranges, server.md5 = False, True
    server.script("a.tar", fault, fault)
    cache, file = cache_in(tmp_path, patience=SHORT), file_at(server)
    with pytest.raises(OSError, match=rf"{server.url}/a\.tar: .*attempt 2"):
        path_of(cache, file)
    assert names(cache) == []
    assert path_of(cache, file).read_bytes() == server.files["a.tar"]


@pytest.mark.parametrize(
    ("status", "kind"), [(404, FileNotFoundError), (403, PermissionError), (400, OSError)]
)
def test_a_refusal_is_not_retried(
    tmp_path: Path, server: FaultyServer, status: int, kind: type[OSError]
) -> None:
    server.script("a.tar", status)
    with pytest.raises(kind, match=rf"{server.url}/a\.tar: HTTP {status}"):
        path_of(cache_in(tmp_path), file_at(server))
    assert len(server.gets("a.tar")) == 1


def test_wrong_bytes_of_the_right_length_are_detected_by_their_md5(
    tmp_path: Path, server: FaultyServer
) -> None:
    server.md5 = True
    server.script("a.tar", "wrong bytes")
    assert path_of(cache_in(tmp_path), file_at(server)).read_bytes() == server.files["a.tar"]
    assert server.gets("a.tar") == ["", ""]


def test_a_file_that_was_replaced_is_refused_until_it_is_found_anew(
    tmp_path: Path, server: FaultyServer
) -> None:
    cache, old = cache_in(tmp_path), file_at(server)
    server.files["a.tar"] = server.files["a.tar"][::-1]
    with pytest.raises(OSError, match=r"a\.tar: has changed since the start"):
        path_of(cache, old)
    assert path_of(cache, file_at(server)).read_bytes() == server.files["a.tar"]


def test_a_new_version_in_s3_is_another_file(tmp_path: Path, s3: S3) -> None:
    url = s3.put("train/a.tar", BODY)
    [old] = find([url], allow_pipe=False)
    cache = cache_in(tmp_path)
    first = path_of(cache, old)
    s3.put("train/a.tar", BODY[::-1])
    [new] = find([url], allow_pipe=False)
    assert path_of(cache, new).read_bytes() == BODY[::-1]
    assert path_of(cache, old) == first
    assert first.read_bytes() == BODY
    first.unlink()
    with pytest.raises(OSError, match=f"{url}: "):
        path_of(cache, old)


def test_a_change_in_s3_of_the_same_size_is_noticed_without_an_md5(tmp_path: Path, s3: S3) -> None:
    url = s3.put("train/b.tar", BODY)
    stale = ShardFile(url, size=len(BODY), stamp="an older ETag", md5="")
    with pytest.raises(OSError, match="has changed since the start: was an older ETag"):
        path_of(cache_in(tmp_path), stale)


def test_an_object_of_s3_is_read_in_ranges(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipx.data.transfer.store.CHUNK", 300_000)
    url = s3.put("train/ranges.tar", BODY)
    [file] = find([url], allow_pipe=False)
    assert path_of(cache_in(tmp_path), file).read_bytes() == BODY
    assert s3.count("GET", "train/ranges.tar") == 4


def test_the_etag_of_an_object_under_kms_is_not_taken_for_its_md5(tmp_path: Path, s3: S3) -> None:
    plain = s3.put("train/plain.tar", BODY)
    secret = s3.put("train/kms.tar", BODY, ServerSideEncryption="aws:kms")
    sum_of_other = hashlib.md5(b"other").hexdigest()
    cache = cache_in(tmp_path)
    with pytest.raises(OSError, match="MD5"):
        path_of(cache, ShardFile(plain, size=len(BODY), stamp="", md5=sum_of_other))
    file = ShardFile(secret, size=len(BODY), stamp="", md5=sum_of_other)
    assert path_of(cache, file).read_bytes() == BODY


def test_a_call_that_hangs_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory", use_listings_cache=False)
    memory.pipe_file("/train/a.tar", BODY)
    [file] = find(["memory://train/a.tar"], allow_pipe=False)
    hang, calls, real = threading.Event(), [], type(memory).cat_file

    def hanging(self: object, path: str, **options: int) -> bytes:
        calls.append(path)
        if len(calls) == 1:
            hang.wait(30)
        return real(self, path, **options)

    monkeypatch.setattr(type(memory), "cat_file", hanging)
    assert path_of(cache_in(tmp_path, patience=SHORT), file).read_bytes() == BODY
    hang.set()
    assert len(calls) == 2


def test_a_file_of_unknown_size_is_bounded(tmp_path: Path, server: FaultyServer) -> None:
    server.lengths = False
    file = file_at(server)
    assert file.size == -1
    cache = cache_in(tmp_path)
    path = path_of(cache, file)
    assert path.read_bytes() == server.files["a.tar"]
    with pytest.raises(UserError, match=r"a\.tar.*cache_gib"):
        path_of(cache_in(tmp_path / "small", limit=1000), file)


def test_the_least_recently_used_file_is_evicted(tmp_path: Path, server: FaultyServer) -> None:
    a, b, c, d = (file_at(server, letter) for letter in "abcd")
    cache = cache_in(tmp_path, limit=3 * MIB)
    for file in (a, b, c, a, d):
        path_of(cache, file)
    assert names(cache) == ["a.tar", "c.tar", "d.tar"]
    path_of(cache, b)
    assert names(cache) == ["a.tar", "b.tar", "d.tar"]
    assert sum(p.stat().st_size for p in cache.folder.iterdir()) <= 3 * MIB


def test_files_of_others_are_not_evicted(tmp_path: Path, server: FaultyServer) -> None:
    cache = cache_in(tmp_path, limit=MIB)
    cache.folder.mkdir()
    (cache.folder / "thesis.tex").write_bytes(BODY * 3)
    for letter in "ab":
        path_of(cache, file_at(server, letter))
    assert names(cache) == ["b.tar", "thesis.tex"]


def test_an_open_file_outlives_its_eviction(tmp_path: Path, server: FaultyServer) -> None:
    cache = cache_in(tmp_path, limit=MIB)
    descriptor = cache.open(file_at(server, "a"))
    path_of(cache, file_at(server, "b"))
    assert names(cache) == ["b.tar"]
    assert contents(descriptor) == server.files["a.tar"]
    assert not os.get_inheritable(cache.open(file_at(server, "b")))


def test_a_shard_larger_than_the_cache_names_the_setting(
    tmp_path: Path, server: FaultyServer
) -> None:
    with pytest.raises(UserError, match=r"a\.tar has .*raise `cache_gib`"):
        path_of(cache_in(tmp_path, limit=1000), file_at(server))
    assert server.gets("a.tar") == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, server: FaultyServer) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot be written.*choose another folder"):
        path_of(cache_in(tmp_path), file_at(server))


def test_a_full_disk_is_named_at_once(
    tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes, place: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clipx.data.shard_cache.os.pwrite", full)
    cache = cache_in(tmp_path)
    with pytest.raises(UserError, match=r"No space left.*lower `cache_gib`"):
        path_of(cache, file_at(server))
    assert len(server.gets("a.tar")) == 1
    assert names(cache) == []


def download(cache: ShardCache, file: ShardFile, start: float) -> None:
    """Runs in a process of its own, which an alarm ends if it would wait forever."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)
    time.sleep(max(0.0, start - time.time()))
    data = path_of(cache, file).read_bytes()
    assert len(data) == file.size


def test_processes_that_want_the_same_file_share_one_download(
    tmp_path: Path, server: FaultyServer
) -> None:
    server.delay_seconds = 0.2
    cache, file = cache_in(tmp_path), file_at(server)
    at_once = time.time() + 0.2
    children = [FORK.Process(target=download, args=(cache, file, at_once)) for _ in range(5)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 5
    assert len(server.gets("a.tar")) == 1
    assert names(cache) == ["a.tar"]


def test_threads_that_want_the_same_file_share_one_download(
    tmp_path: Path, server: FaultyServer
) -> None:
    server.delay_seconds = 0.1
    cache, file = cache_in(tmp_path), file_at(server)
    threads = [threading.Thread(target=path_of, args=(cache, file)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.gets("a.tar")) == 1


def test_processes_in_a_cache_of_one_shard_take_turns(tmp_path: Path, server: FaultyServer) -> None:
    cache = cache_in(tmp_path, limit=MIB)
    files = [file_at(server, letter) for letter in "abcdef"]
    children = [FORK.Process(target=download, args=(cache, file, 0.0)) for file in files]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert len(names(cache)) == 1


def test_a_killed_download_leaves_the_cache_usable(tmp_path: Path, server: FaultyServer) -> None:
    cache = cache_in(tmp_path, limit=2 * MIB)
    server.script("a.tar", "stall midway")
    a, b, c = (file_at(server, letter) for letter in "abc")
    killed = FORK.Process(target=download, args=(cache, a, 0.0))
    killed.start()
    wait_until(lambda: len(server.gets("a.tar")) == 1 and names(cache) == ["a.tar"])
    waiting = FORK.Process(target=download, args=(cache, a, 0.0))
    waiting.start()
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    waiting.join()
    assert waiting.exitcode == 0
    killed.join()

    server.script("a.tar", "stall midway")
    path_of(cache, a).unlink()
    killed = FORK.Process(target=download, args=(cache, a, 0.0))
    killed.start()
    wait_until(lambda: len(server.gets("a.tar")) == 3 and names(cache) == ["a.tar"])
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert [p.name[:5] for p in cache.folder.glob("[!.]*")] == ["part-"]
    path_of(cache, b)
    assert names(cache) == ["b.tar"]  # the part of the killed process is removed
    assert path_of(cache, a).read_bytes() == server.files["a.tar"]
    path_of(cache, c)


def test_a_prefetched_file_is_not_downloaded_again(tmp_path: Path, server: FaultyServer) -> None:
    cache = cache_in(tmp_path)
    files = [file_at(server, letter) for letter in "abc"]
    cache.prefetch(files)
    cache.prefetch(files)
    wait_until(lambda: names(cache) == ["a.tar", "b.tar", "c.tar"])
    wait_until(lambda: not partial(cache))
    before = len(server.log)
    for file, letter in zip(files, "abc", strict=True):
        assert contents(cache.open(file)) == server.files[f"{letter}.tar"]
    assert len(server.log) == before
    assert [len(server.gets(f"{letter}.tar")) for letter in "abc"] == [1, 1, 1]


def test_prefetching_follows_the_order_of_need(tmp_path: Path, server: FaultyServer) -> None:
    cache = cache_in(tmp_path, threads=1)
    files = [file_at(server, letter) for letter in "cab"]
    server.log.clear()
    cache.prefetch(files)
    wait_until(lambda: len(server.log) == 3)
    assert [path for _, path, _ in server.log] == ["c.tar", "a.tar", "b.tar"]


def test_a_download_gets_its_name_while_nobody_counts_files(
    tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that met neither name made room for one file too many."""
    cache = cache_in(tmp_path, limit=4 * MIB)
    file = file_at(server, "a")
    renamed = []
    rename = Path.rename

    def checked(part: Path, target: Path) -> Path:
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(part.parent / ".lock").acquire(timeout=0)
        renamed.append(target.name)
        return rename(part, target)

    monkeypatch.setattr(Path, "rename", checked)
    path_of(cache, file)
    assert len(renamed) == 1


def test_prefetching_evicts_neither_recent_nor_awaited_files(
    tmp_path: Path, server: FaultyServer
) -> None:
    """Of four places, two are for prefetched files; the others stay for files used last."""
    a, b, c, d, e, f = (file_at(server, letter) for letter in "abcdef")
    cache = cache_in(tmp_path, limit=4 * MIB)
    for file in (a, b, c):
        path_of(cache, file)
    cache.prefetch([d, e, f])
    wait_until(lambda: {"d.tar", "e.tar"} <= set(names(cache)) and not partial(cache))
    cache.prefetch([])  # asks for room again
    time.sleep(0.2)
    assert names(cache) == ["b.tar", "c.tar", "d.tar", "e.tar"]
    assert server.gets("f.tar") == []
    path_of(cache, d)  # its use makes room for f, and the least recently used file is evicted
    wait_until(lambda: "f.tar" in names(cache))
    wait_until(lambda: names(cache) == ["c.tar", "d.tar", "e.tar", "f.tar"])


def test_a_failed_prefetch_is_raised_for_the_reader(tmp_path: Path, server: FaultyServer) -> None:
    cache = cache_in(tmp_path)
    a, b = file_at(server, "a"), file_at(server, "b")
    server.script("a.tar", 404, 404)
    cache.prefetch([a, b])
    wait_until(lambda: names(cache) == ["b.tar"])
    with pytest.raises(FileNotFoundError, match=r"a\.tar"):
        path_of(cache, a)
    assert path_of(cache, a).read_bytes() == server.files["a.tar"]


def test_a_cache_is_pickled_without_its_threads(tmp_path: Path, server: FaultyServer) -> None:
    cache = cache_in(tmp_path)
    cache.prefetch([file_at(server, "a")])
    copy = pickle.loads(pickle.dumps(cache))  # noqa: S301 our own
    assert (copy.folder, copy.limit_bytes) == (cache.folder, cache.limit_bytes)
    copy.prefetch([file_at(server, "b")])
    wait_until(lambda: names(cache) == ["a.tar", "b.tar"])
    assert contents(copy.open(file_at(server, "a"))) == server.files["a.tar"]


def use_everything(cache: ShardCache, files: list[ShardFile]) -> None:
    cache.prefetch(files[::-1])
    for file in files:
        assert contents(cache.open(file))[:-1] == BODY


def test_a_forked_process_reads_after_its_parent_has(
    tmp_path: Path, server: FaultyServer, s3: S3
) -> None:
    remote = [file_at(server, letter) for letter in "abcd"]
    remote += find([s3.put(f"fork/{k}.tar", BODY + b"s") for k in range(4)], allow_pipe=False)
    cache = cache_in(tmp_path)
    use_everything(cache, remote[::2])
    child = FORK.Process(target=use_everything, args=(cache, remote))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert len(names(cache)) == 8


def download_with_child(cache: ShardCache, file: ShardFile, server: FaultyServer) -> None:
    """A loader that is downloading when it forks a worker which needs the same file."""
    cache.prefetch([file])
    wait_until(lambda: names(cache) == ["a.tar"])
    FORK.Process(target=download, args=(cache, file, 0.0)).start()
    time.sleep(60)


def test_a_worker_gets_its_file_when_the_downloading_parent_is_killed(
    tmp_path: Path, server: FaultyServer
) -> None:
    cache, file = cache_in(tmp_path), file_at(server)
    server.script("a.tar", "stall midway")
    parent = FORK.Process(target=download_with_child, args=(cache, file, server))
    parent.start()
    wait_until(lambda: len(server.gets("a.tar")) == 1)
    time.sleep(0.3)
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: len(server.gets("a.tar")) == 2)
    parent.join()
    wait_until(lambda: not partial(cache))
    assert path_of(cache, file).read_bytes() == server.files["a.tar"]
    assert len(server.gets("a.tar")) == 2


def prefetch_and_end(cache: ShardCache, files: list[ShardFile]) -> None:
    cache.prefetch(files)
    wait_until(lambda: names(cache) == ["a.tar", "b.tar"] and not partial(cache))


def test_files_prefetched_by_an_ended_process_may_be_evicted(
    tmp_path: Path, server: FaultyServer
) -> None:
    a, b, c, d = (file_at(server, letter) for letter in "abcd")
    cache = cache_in(tmp_path, limit=4 * MIB)
    ended = FORK.Process(target=prefetch_and_end, args=(cache, [a, b]))
    ended.start()
    ended.join()
    assert ended.exitcode == 0
    cache.prefetch([c, d])  # there is no room for them while a and b are awaited
    wait_until(lambda: names(cache) == ["a.tar", "b.tar", "c.tar", "d.tar"])


def piped(command: str) -> ShardFile:
    [file] = find([f"pipe:{command}"], allow_pipe=True)
    return file


def test_the_output_of_a_pipe_is_cached(tmp_path: Path) -> None:
    log = tmp_path / "runs"
    file = piped(f"echo run >> {log}; printf abc | tr a-c A-C; sleep 0.1; echo")
    cache = cache_in(tmp_path)
    assert path_of(cache, file).read_bytes() == b"ABC\n"
    assert path_of(cache, file).read_bytes() == b"ABC\n"
    assert log.read_text() == "run\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo no such bucket >&2; echo half; exit 3", "ended with 3: no such bucket"),
        ("false | cat", "ended with 1: nothing on stderr"),
        ("sleep 30 | cat", "written nothing for 0.5 s"),
        ("echo x; exec >&-; sleep 30", "runs on"),
    ],
)
def test_a_pipe_that_fails_is_run_again_and_then_explained(
    tmp_path: Path, command: str, words: str
) -> None:
    log = tmp_path / "runs"
    cache = cache_in(tmp_path, patience=SHORT)
    with pytest.raises(OSError, match=f"pipe:echo run.*{words}"):
        path_of(cache, piped(f"echo run >> {log}; {command}"))
    assert log.read_text() == "run\n" * 2
    assert names(cache) == []


def test_the_room_of_another_download_is_not_evicted(tmp_path: Path) -> None:
    whole, other, own = (tmp_path / f"{number:020x}-x.tar" for number in range(3))
    parts = [path.with_name(f"part-{path.name}") for path in (other, own)]
    whole.write_bytes(bytes(20))
    parts[0].write_bytes(bytes(60))
    parts[1].touch()
    lock = eviction.download_lock(other)
    with lock:
        assert not eviction.make_room(parts[1], 50, limit=100)
        assert whole.exists()
        assert parts[1].stat().st_size == 0
        assert eviction.make_room(parts[1], 40, limit=100)
        assert (whole.exists(), parts[1].stat().st_size) == (False, 40)
    assert eviction.make_room(parts[1], 100, limit=100), "an unlocked part is abandoned"
    assert not parts[0].exists()


def test_files_beside_the_shards_count_when_the_cache_is_trimmed(tmp_path: Path) -> None:
    """The least recently used file is evicted."""
    cache = ShardCache(tmp_path, limit_bytes=100, patience=QUICK)
    for number, size in enumerate((50, 50, 20)):
        path = tmp_path / f"{number:020x}-x.tar"
        path.write_bytes(bytes(size))
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    cache.trim()
    assert sorted(path.name[19] for path in tmp_path.glob("*.tar")) == ["1", "2"]
