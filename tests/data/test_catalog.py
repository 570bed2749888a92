"""The catalog: what is known of shards is not looked at again, what has changed is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import jpeg, pair, png, write_corpus, write_shard

from clipx.data import catalog as catalog_module
from clipx.data import shards as shards_module
from clipx.data.captions import CaptionFields
from clipx.data.catalog import DECLARED, Catalog, open_catalog, store_path
from clipx.data.corpus import Corpus
from clipx.data.order import Order
from clipx.data.sample import SampleError
from clipx.data.shard_cache import ShardCache
from clipx.data.shards import expand
from clipx.data.sources import webdataset
from clipx.data.sources.folder import Folder
from clipx.data.sources.webdataset import Webdataset
from clipx.data.tar_index import Head, load_head, load_index
from clipx.data.transfer.common import ShardFile
from clipx.types import UserError


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were looked at, one by one."""
    names: list[str] = []

    def look(path: Path, **settings: Any) -> Head:
        names.append(path.name)
        return load_head(path, **settings)

    monkeypatch.setattr(catalog_module, "load_head", look)
    return names


@pytest.fixture
def shard_cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "shards", 2**30)


@pytest.fixture
def opened(corpus: Path, shard_cache: ShardCache, looked: list[str]) -> Callable[[], Catalog]:
    """Opens the corpus and forgets what was looked at before."""

    def open_it() -> Catalog:
        looked.clear()
        return open_catalog(expand(str(corpus)), shard_cache)

    return open_it


def same(a: Catalog, b: Catalog) -> bool:
    columns = ("samples", "digests", "truncated")
    return (a.files, a.faults) == (b.files, b.faults) and all(
        np.array_equal(vars(a)[name], vars(b)[name]) for name in columns
    )


def test_a_catalog_is_what_the_indexes_say(opened: Callable[[], Catalog], corpus: Path) -> None:
    found = opened()
    heads = [load_index(path).head for path in sorted(corpus.glob("*.tar"))]
    assert found.samples.tolist() == [head.samples for head in heads] == [5, 1, 7]
    assert [found.digest(shard) for shard in range(3)] == [head.digest for head in heads]
    assert not found.truncated.any()
    assert found.faults == ()


def test_known_shards_are_not_looked_at_again(
    opened: Callable[[], Catalog], looked: list[str], own_cache: Path
) -> None:
    first = opened()
    assert sorted(looked) == ["00000.tar", "00001.tar", "00002.tar"]
    assert store_path(first.files).is_relative_to(own_cache)
    again = opened()
    assert looked == []
    assert same(again, first)


@pytest.mark.parametrize("change", ["added", "rewritten", "touched", "removed", "renamed"])
def test_what_has_changed_is_looked_at_and_nothing_else(
    change: str, opened: Callable[[], Catalog], looked: list[str], corpus: Path
) -> None:
    before = opened()
    middle = corpus / "00001.tar"
    if change == "added":
        write_shard(corpus / "00000b.tar", {"new": pair(1), "newer": pair(2)})
    elif change == "rewritten":
        write_shard(middle, {"new": pair(1), "newer": pair(2)})
    elif change == "touched":
        os.utime(middle, ns=(1, 1))
    elif change == "removed":
        middle.unlink()
    else:
        middle.rename(corpus / "00003.tar")
    after = opened()
    expected = {
        "added": (["00000b.tar"], [5, 2, 1, 7]),
        "rewritten": (["00001.tar"], [5, 2, 7]),
        "touched": (["00001.tar"], [5, 1, 7]),
        "removed": ([], [5, 7]),
        "renamed": (["00003.tar"], [5, 7, 1]),
    }
    assert (looked, after.samples.tolist()) == expected[change]
    heads = [load_index(path).head for path in sorted(corpus.glob("*.tar"))]
    assert [after.digest(n) for n in range(len(heads))] == [head.digest for head in heads]
    assert (after.digests[0], after.digests[-1]) == (before.digests[0], heads[-1].digest.encode())
    assert same(opened(), after)
    assert looked == []


def test_what_cannot_be_read_is_a_fault_and_looked_at_the_next_time(
    opened: Callable[[], Catalog], looked: list[str], corpus: Path
) -> None:
    (corpus / "00001.tar").write_bytes(b"<html>" * 1000)
    for _ in range(2):
        found = opened()
        assert "00001.tar" in looked
        assert found.samples.tolist() == [5, 0, 7]
        assert found.digest(1) == "unreadable"
        (fault,) = found.faults
        assert fault.shard == str(corpus / "00001.tar")
        assert (fault.stage, fault.error, fault.key, fault.position) == (
            "shard",
            "NotATar",
            "",
            -1,
        )
        assert "is not a tar file" in fault.message
    assert looked == ["00001.tar"]
    write_shard(corpus / "00001.tar", {"mended": pair(0)})
    found = opened()
    assert looked == ["00001.tar"]
    assert (found.samples.tolist(), found.faults) == ([5, 1, 7], ())


def test_a_shard_that_vanishes_while_it_is_looked_at_is_a_fault(
    corpus: Path, shard_cache: ShardCache
) -> None:
    files = expand(str(corpus))
    (corpus / "00002.tar").unlink()
    found = open_catalog(files, shard_cache)
    assert found.samples.tolist() == [5, 1, 0]
    assert [(Path(f.shard).name, f.error) for f in found.faults] == [
        ("00002.tar", "FileNotFoundError")
    ]


def test_a_truncated_tar_is_told_at_every_start(
    opened: Callable[[], Catalog], looked: list[str], corpus: Path
) -> None:
    members = load_index(corpus / "00002.tar").members(4)
    os.truncate(corpus / "00002.tar", members[0][1] + 3)
    found = [opened(), opened()]
    assert looked == []
    for one in found:
        assert one.samples.tolist() == [5, 1, 4]
        assert one.truncated.tolist() == [False, False, True]
        (fault,) = one.faults
        assert (Path(fault.shard).name, fault.error) == ("00002.tar", "TruncatedTar")
        assert "after its first 4 are missing" in fault.message


def test_damage_and_second_images_are_told_at_every_start(
    opened: Callable[[], Catalog], looked: list[str], corpus: Path
) -> None:
    both = {"jpg": jpeg(1), "png": png(1), "txt": "x"}
    write_shard(corpus / "00000.tar", {"a": both, "b": pair(2), "c": both})
    data = (corpus / "00002.tar").read_bytes()
    (corpus / "00002.tar").write_bytes(data[:1024] + b"\1" + data[1025:])
    write_shard(corpus / "00003.tar", {"new": pair(1)})
    found = [opened(), opened()]
    assert looked == []
    (corpus / "00001.tar").unlink()  # the others move
    found.append(opened())
    for one in found:
        assert [(Path(f.shard).name, f.error) for f in one.faults] == [
            ("00000.tar", "SecondImage"),
            ("00002.tar", "DamagedTar"),
        ]
        assert not any(fault.is_whole_shard for fault in one.faults)
        assert one.faults[0].message == (
            "2 samples have more than one image; the first of jpg, jpeg, png, webp is used"
        )


def test_of_two_images_the_tar_and_the_folder_use_the_same(tmp_path: Path) -> None:
    for order in (["png", "jpg"], ["jpg", "png"]):
        tar = write_shard(tmp_path / "0.tar", {"a": {e: e.encode() for e in [*order, "txt"]}})
        source = webdataset.Config(str(tar)).build()
        assert source.read(0, 0).image == b"jpg"
    for name in ("a.png", "a.jpg", "a.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert Folder(tmp_path).read(0, 0).image == b"a.jpg"


def test_a_broken_cache_costs_one_look_and_nothing_else(
    opened: Callable[[], Catalog], looked: list[str]
) -> None:
    first = opened()
    store = store_path(first.files)
    whole = store.read_bytes()
    half = whole[: len(whole) // 2]
    column = first.samples.tobytes()
    assert whole.count(column) == 1
    changed = whole.replace(column, bytes(len(column)))  # all shards empty: but for a checksum
    for content in (b"", b"no archive", half, changed, whole[:-1]):
        store.write_bytes(content)
        assert same(opened(), first)
        assert len(looked) == 3
        assert same(opened(), first)
        assert looked == []


def test_a_cache_of_another_version_is_made_anew(
    opened: Callable[[], Catalog], looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened()
    monkeypatch.setattr(catalog_module, "_VERSION", 999)
    opened()
    assert len(looked) == 3
    opened()
    assert looked == []


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_next_look(
    opened: Callable[[], Catalog],
    looked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("where a folder must be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first = opened()
    assert same(opened(), first)
    assert len(looked) == 3


def test_no_temporary_file_is_left(opened: Callable[[], Catalog]) -> None:
    store = store_path(opened().files)
    assert list(store.parent.glob(f".{store.name}*")) == []
    assert list(store.parent.glob(store.name)) == [store]


def test_many_shards_are_looked_at_once_each_and_counted(
    tmp_path: Path, looked: list[str], shard_cache: ShardCache
) -> None:
    """More than there are threads."""
    write_corpus(tmp_path / "many", sizes=(1,) * 40)
    steps: list[None] = []
    found = open_catalog(expand(str(tmp_path / "many")), shard_cache, lambda: steps.append(None))
    assert len(steps) == 40
    assert sorted(looked) == [f"{n:05d}.tar" for n in range(40)]
    heads = [load_head(Path(file.url)) for file in found.files]
    assert [found.digest(n) for n in range(40)] == [head.digest for head in heads]


# --- remote shards ---

HERE = "fake://bucket/here"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, looked: list[str]) -> dict[str, bytes]:
    """Small remote files by their URL; each question is noted in `looked`."""
    content: dict[str, bytes] = {}

    def fetch(url: str) -> bytes | None:
        looked.append(url)
        return content.get(url)

    monkeypatch.setattr(shards_module, "fetch_small", fetch)
    return content


class LocalCopies(ShardCache):
    """A cache that has the shards of a folder already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 2**30)
        self.copies = folder

    def place(self, file: ShardFile) -> Path:
        return self.copies / file.url.rpartition("/")[2]

    def open(self, file: ShardFile) -> int:
        return os.open(self.place(file), os.O_RDONLY | os.O_CLOEXEC)


def files(*names: str, stamp: str = "1") -> list[ShardFile]:
    return [ShardFile(f"{HERE}/{name}", 10240, stamp, "") for name in names]


def test_sizes_json_tells_of_remote_shards(
    corpus: Path, remote: dict[str, bytes], looked: list[str]
) -> None:
    """What it does not name is fetched and looked at."""
    remote[f"{HERE}/sizes.json"] = b'{"00000.tar": 5, "00002.tar": 6, "other.tar": 9}'
    mine = files("00000.tar", "00001.tar", "00002.tar")
    found = open_catalog(mine, LocalCopies(corpus))
    assert found.samples.tolist() == [5, 1, 6]
    assert looked == [f"{HERE}/sizes.json", "00001.tar"]
    state = hashlib.sha1(b"10240 1 5").hexdigest()
    assert found.digest(0) == DECLARED + state
    assert found.digest(1) == load_head(corpus / "00001.tar").digest
    looked.clear()
    assert same(open_catalog(mine, LocalCopies(corpus)), found)
    assert looked == []


def test_a_remote_shard_of_another_stamp_is_another(
    corpus: Path, remote: dict[str, bytes], looked: list[str]
) -> None:
    remote[f"{HERE}/sizes.json"] = b'{"00000.tar": 5}'
    first, second = (
        open_catalog(files("00000.tar", stamp=stamp), LocalCopies(corpus)) for stamp in ("8", "9")
    )
    assert first.digest(0) != second.digest(0)
    assert looked == [f"{HERE}/sizes.json"] * 2


def test_a_tar_with_fewer_samples_than_it_was_told_of_has_bad_ones(
    corpus: Path, remote: dict[str, bytes]
) -> None:
    remote[f"{HERE}/sizes.json"] = b'{"00000.tar": 7}'
    cache = LocalCopies(corpus)
    source = Webdataset(open_catalog(files("00000.tar", stamp="fewer"), cache), cache)
    assert source.sizes.tolist() == [7]
    assert source.read(0, 4).key == source.key(0, 4) == "k04"
    for act in (source.read, source.key):
        with pytest.raises((OSError, SampleError), match="counts 7 samples, the tar has 5"):
            act(0, 5)


def test_a_tar_with_more_samples_than_it_was_told_of_is_told_with_the_last(
    corpus: Path, remote: dict[str, bytes]
) -> None:
    remote[f"{HERE}/sizes.json"] = b'{"00000.tar": 3}'
    cache = LocalCopies(corpus)
    source = Webdataset(open_catalog(files("00000.tar", stamp="more"), cache), cache)
    order = Order(source.sizes, seed=0, streams=1, window=9)
    opened = Corpus({"x": source}, order, np.arange(1), CaptionFields({"captions": 1.0}))
    used = [opened.usable(n, 0, n, lambda sample: sample.key) for n in range(3)]
    assert [one.value for one in used] == ["k00", "k01", "k02"]
    (note,) = [bad for one in used for bad in one.bad]
    assert (note.shard, note.error, note.stage, note.position) == (
        f"{HERE}/00000.tar",
        "SizesJson",
        "shard",
        2,
    )
    assert "counts 3 samples and the tar has 5: the last 2 are not used" in note.message


@pytest.mark.parametrize("content", [b"{", b"[3]", b'{"0.tar": "many"}', b'{"0.tar": null}'])
def test_a_sizes_json_that_is_none_is_told(
    content: bytes, corpus: Path, remote: dict[str, bytes]
) -> None:
    remote[f"{HERE}/sizes.json"] = content
    with pytest.raises(UserError, match=r"fake://bucket/here/sizes\.json is not an object of"):
        open_catalog(files("0.tar", stamp="none"), LocalCopies(corpus))
