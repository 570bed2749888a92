"""A file has its old content or its new one; a claimed file has one holder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from clipx.files import (
    cache_folder,
    claim,
    digest_file,
    digest_path,
    release,
    replacing,
    write_whole,
)

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("content", ["café \udce9", b"\xff\0"])
def test_content_is_replaced(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write_whole(path, content)
    assert path.read_bytes() == (b"caf\xc3\xa9 \xe9" if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with suppress(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    contents = [bytes([n]) * 100_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_whole(tmp_path / "file", content), contents * 4))
    assert (tmp_path / "file").read_bytes() in contents


def test_the_cache_folder_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("index") == tmp_path / "clipx" / "index"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder("index") == Path.home() / ".cache" / "clipx" / "index"


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert digest_file(tmp_path / "file", "md5") == "900150983cd24fb0d6963f7d28e17f72"
    assert digest_path(tmp_path / "link") == digest_path(tmp_path / "file")


def test_a_claimed_file_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("left over")
    descriptor = claim(path)
    assert path.read_bytes() == b""
    with pytest.raises(BlockingIOError):
        claim(path)
    release(path, descriptor)
    assert not path.exists()
    release(path, claim(path))


def hold_with_child(path: Path) -> None:
    claim(path)
    FORK.Process(target=time.sleep, args=(5,)).start()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_does_not_keep_the_claim_of_a_killed_parent(tmp_path: Path) -> None:
    parent = FORK.Process(target=hold_with_child, args=(tmp_path / "lock",))
    parent.start()
    parent.join()
    release(tmp_path / "lock", claim(tmp_path / "lock"))
