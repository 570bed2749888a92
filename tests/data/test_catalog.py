"""The catalog: only new and changed shards are opened."""

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
    """Names of the shards that were opened, in order."""
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
    """Opens the corpus and clears the list of opened shards."""

    def open_it() -> Catalog:
        looked.clear()
        return open_catalog(expand(str(corpus)), shard_cache)

    return open_it


def same(a: Catalog, b: Catalog) -> bool:
    columns = ("samples", "digests", "truncated")
    return (a.files, a.faults) == (b.files, b.faults) and all(
        np.array_equal(vars(a)[name], vars(b)[name]) for name in columns
    )


def test_a_catalog_equals_the_indexes(opened: Callable[[], Catalog], corpus: Path) -> None:
    catalog = opened()
    heads = [load_index(path).head for path in sorted(corpus.glob("*.tar"))]
    assert catalog.samples.tolist() == [head.samples for head in heads] == [5, 1, 7]
    assert [catalog.digest(shard) for shard in range(3)] == [head.digest for head in heads]
    assert not catalog.truncated.any()
    assert catalog.faults == ()


def test_known_shards_are_not_opened_again(
    opened: Callable[[], Catalog], looked: list[str], own_cache: Path
) -> None:
    first = opened()
    assert sorted(looked) == ["00000.tar", "00001.tar", "00002.tar"]
    assert store_path(first.files).is_relative_to(own_cache)
    again = opened()
    assert looked == []
    assert same(again, first)


@pytest.mark.parametrize("change", ["added", "rewritten", "touched", "removed", "renamed"])
def test_only_changed_shards_are_opened(
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


def test_an_unreadable_shard_is_a_fault_and_opened_the_next_time(
    opened: Callable[[], Catalog], looked: list[str], corpus: Path
) -> None:
    (corpus / "00001.tar").write_bytes(b"<html>" * 1000)
    for _ in range(2):
        catalog = opened()
        assert "00001.tar" in looked
        assert catalog.samples.tolist() == [5, 0, 7]
        assert catalog.digest(1) == "unreadable"
        (fault,) = catalog.faults
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
    catalog = opened()
    assert looked == ["00001.tar"]
    assert (catalog.samples.tolist(), catalog.faults) == ([5, 1, 7], ())


def test_a_shard_that_vanishes_meanwhile_is_a_fault(corpus: Path, shard_cache: ShardCache) -> None:
    files = expand(str(corpus))
    (corpus / "00002.tar").unlink()
    catalog = open_catalog(files, shard_cache)
    assert catalog.samples.tolist() == [5, 1, 0]
    assert [(Path(f.shard).name, f.error) for f in catalog.faults] == [
        ("00002.tar", "FileNotFoundError")
    ]


def test_a_truncated_tar_is_reported_at_each_start(
    opened: Callable[[], Catalog], looked: list[str], corpus: Path
) -> None:
    members = load_index(corpus / "00002.tar").members(4)
    os.truncate(corpus / "00002.tar", members[0][1] + 3)
    catalogs = [opened(), opened()]
    assert looked == []
    for one in catalogs:
        assert one.samples.tolist() == [5, 1, 4]
        assert one.truncated.tolist() == [False, False, True]
        (fault,) = one.faults
        assert (Path(fault.shard).name, fault.error) == ("00002.tar", "TruncatedTar")
        assert "after its first 4 are missing" in fault.message


def test_damage_and_second_images_are_reported_at_each_start(
    opened: Callable[[], Catalog], looked: list[str], corpus: Path
) -> None:
    both = {"jpg": jpeg(1), "png": png(1), "txt": "x"}
    write_shard(corpus / "00000.tar", {"a": both, "b": pair(2), "c": both})
    data = (corpus / "00002.tar").read_bytes()
    (corpus / "00002.tar").write_bytes(data[:1024] + b"\1" + data[1025:])
    write_shard(corpus / "00003.tar", {"new": pair(1)})
    catalogs = [opened(), opened()]
    assert looked == []
    (corpus / "00001.tar").unlink()  # the others move
    catalogs.append(opened())
    for one in catalogs:
        assert [(Path(f.shard).name, f.error) for f in one.faults] == [
            ("00000.tar", "SecondImage"),
            ("00002.tar", "DamagedTar"),
        ]
        assert not any(fault.is_whole_shard for fault in one.faults)
        assert one.faults[0].message == (
            "2 samples have more than one image; the first of jpg, jpeg, png, webp, gif, bmp, tif, "
            "tiff, avif is used"
        )


@pytest.mark.parametrize("other", ["png", "gif", "tiff", "heic"])
def test_tars_and_folders_use_the_same_of_two_images(tmp_path: Path, other: str) -> None:
    for order in ([other, "jpg"], ["jpg", other]):
        tar = write_shard(tmp_path / "0.tar", {"a": {e: e.encode() for e in [*order, "txt"]}})
        source = webdataset.Config(str(tar)).build()
        assert source.read(0, 0).image == b"jpg"
    for name in (f"a.{other}", "a.jpg", "a.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert Folder(tmp_path).read(0, 0).image == b"a.jpg"


def test_a_broken_catalog_is_rebuilt(opened: Callable[[], Catalog], looked: list[str]) -> None:
    first = opened()
    store = store_path(first.files)
    whole = store.read_bytes()
    half = whole[: len(whole) // 2]
    column = first.samples.tobytes()
    assert whole.count(column) == 1
    changed = whole.replace(column, bytes(len(column)))  # all shards empty, with a wrong checksum
    for content in (b"", b"no archive", half, changed, whole[:-1]):
        store.write_bytes(content)
        assert same(opened(), first)
        assert len(looked) == 3
        assert same(opened(), first)
        assert looked == []


def test_a_catalog_of_another_version_is_rebuilt(
    opened: Callable[[], Catalog], looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened()
    monkeypatch.setattr(catalog_module, "_VERSION", 999)
    opened()
    assert len(looked) == 3
    opened()
    assert looked == []


def test_a_catalog_that_cannot_be_stored_is_rebuilt(
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


def test_many_shards_are_opened_once_each_and_counted(
    tmp_path: Path, looked: list[str], shard_cache: ShardCache
) -> None:
    """More than there are threads."""
    write_corpus(tmp_path / "many", sizes=(1,) * 40)
    steps: list[None] = []
    catalog = open_catalog(expand(str(tmp_path / "many")), shard_cache, lambda: steps.append(None))
    assert len(steps) == 40
    assert sorted(looked) == [f"{n:05d}.tar" for n in range(40)]
    heads = [load_head(Path(file.url)) for file in catalog.files]
    assert [catalog.digest(n) for n in range(40)] == [head.digest for head in heads]


# --- remote shards ---

HERE = "fake://bucket/here"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, looked: list[str]) -> dict[str, bytes]:
    """Small remote files by their URL; each request is appended to `looked`."""
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


def test_sizes_json_counts_remote_shards(
    corpus: Path, remote: dict[str, bytes], looked: list[str]
) -> None:
    """Shards that it does not name are downloaded and opened."""
    remote[f"{HERE}/sizes.json"] = b'{"00000.tar": 5, "00002.tar": 6, "other.tar": 9}'
    listed = files("00000.tar", "00001.tar", "00002.tar")
    catalog = open_catalog(listed, LocalCopies(corpus))
    assert catalog.samples.tolist() == [5, 1, 6]
    assert looked == [f"{HERE}/sizes.json", "00001.tar"]
    state = hashlib.sha1(b"10240 1 5").hexdigest()
    assert catalog.digest(0) == DECLARED + state
    assert catalog.digest(1) == load_head(corpus / "00001.tar").digest
    looked.clear()
    assert same(open_catalog(listed, LocalCopies(corpus)), catalog)
    assert looked == []


def test_a_remote_shard_with_another_stamp_has_another_digest(
    corpus: Path, remote: dict[str, bytes], looked: list[str]
) -> None:
    remote[f"{HERE}/sizes.json"] = b'{"00000.tar": 5}'
    first, second = (
        open_catalog(files("00000.tar", stamp=stamp), LocalCopies(corpus)) for stamp in ("8", "9")
    )
    assert first.digest(0) != second.digest(0)
    assert looked == [f"{HERE}/sizes.json"] * 2


def test_a_tar_with_fewer_samples_than_declared_has_bad_ones(
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


def test_a_tar_with_more_samples_than_declared_is_reported_with_the_last(
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
def test_a_malformed_sizes_json_is_refused(
    content: bytes, corpus: Path, remote: dict[str, bytes]
) -> None:
    remote[f"{HERE}/sizes.json"] = content
    with pytest.raises(UserError, match=r"fake://bucket/here/sizes\.json is not an object of"):
        open_catalog(files("0.tar", stamp="none"), LocalCopies(corpus))
