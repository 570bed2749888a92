"""The index of a shard equals the listing of tarfile."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import png, write_shard, write_tar

from clipx.data import tar_index as index_module
from clipx.data.tar_index import ShardIndex, build_index, load_head, load_index
from clipx.types import UserError


def listing(index: ShardIndex) -> list[tuple[str, str, int, int]]:
    return [(key, *member) for i, key in enumerate(index.keys) for member in index.members(i)]


def tarfile_listing(path: Path) -> list[tuple[str, str, int, int]]:
    """The oracle: regular files by the standard library, key up to the name's first dot."""
    out = []
    with tarfile.open(path) as tar:
        for info in tar:
            if info.isreg():
                folder, slash, base = info.name.rpartition("/")
                stem, _, extension = base.partition(".")
                out.append((folder + slash + stem, extension.lower(), info.offset_data, info.size))
    return out


LONG = "very_long_folder_name/" * 6
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = {
    "plain": ["1.jpg", "1.txt", "2.jpg", "2.txt"],
    "folders": ["a", "a/1.jpg", "a/1.txt", "a/b", "a/b/1.jpg", "b/1.jpg"],
    "long": ["1.jpg", f"{LONG}2.jpg", f"{LONG}2.txt", "3.jpg"],
    "unicode": ["\u732b/\u72ac.jpg", "\u732b/\u72ac.txt", "\xe9t\xe9.png"],
    "dots": ["x.seg.png", "x.JPG", "y", ".hidden", "z.tar.gz"],
    "newline": ["a\nb.jpg", "a\nb.txt", "c.jpg"],
    "no key": [".jpg"],
    "none": [],
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("names", NAMES)
def test_an_index_equals_the_listing_of_tarfile(tmp_path: Path, format: str, names: str) -> None:
    members = {
        name: None if name in ("a", "a/b") else bytes(700 * i)
        for i, name in enumerate(NAMES[names])
    }
    path = write_tar(tmp_path / "0.tar", members, format=FORMATS[format])
    first = load_index(path)
    assert listing(first) == tarfile_listing(path)
    assert not first.head.truncated
    assert len(first) == len(first.keys)
    assert listing(load_index(path)) == listing(first)  # from the sidecar
    assert load_index(path).head.digest == first.head.digest


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(
        st.from_regex(r"([a-b]{1,60}/){0,3}[a-c]{1,90}(\.[a-z]{1,3}){0,2}", fullmatch=True),
        max_size=8,
    ),
    sizes=st.lists(st.integers(0, 1500), min_size=8, max_size=8),
    format=st.sampled_from(["gnu", "pax"]),
)
def test_an_index_of_any_names_equals_the_listing_of_tarfile(
    tmp_path: Path, names: list[str], sizes: list[int], format: str
) -> None:
    members = {name: bytes(size) for name, size in zip(names, sizes, strict=False)}
    path = write_tar(tmp_path / "any.tar", members, format=FORMATS[format])
    assert listing(build_index(path)) == tarfile_listing(path)


def test_names_that_are_not_utf8_have_a_key_and_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "latin1.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for name in (
            "\xe9t\xe9.jpg",
            "\xfc" * 80 + "/" + "\xe4" * 80 + ".jpg",
        ):  # the second has a prefix
            tar.addfile(tarfile.TarInfo(name))
    first = load_index(path)
    assert listing(first) == tarfile_listing(path)
    assert load_index(path).keys == first.keys  # from the sidecar
    assert load_index(path).head.digest == first.head.digest


# --- the sidecar ---

TWO = {"1": {"png": png(1), "txt": "one"}, "2": {"png": png(2), "txt": "two"}}


def test_a_stale_sidecar_is_renewed(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", TWO)
    old = load_index(path)
    write_shard(path, TWO | {"3": {"png": png(3), "txt": "three"}})
    new = load_index(path)
    assert (len(old), len(new)) == (2, 3)
    assert new.head.digest != old.head.digest
    assert len(load_index(path)) == 3


def test_a_same_sized_rewrite_is_noticed_by_its_time(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", TWO)
    size = path.stat().st_size
    load_index(path)
    write_shard(path, {"x": TWO["1"], "y": TWO["2"]})
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size
    assert load_index(path).keys == ["x", "y"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short"])
def test_a_broken_sidecar_is_rebuilt(tmp_path: Path, content: bytes) -> None:
    path = write_shard(tmp_path / "0.tar", TWO)
    sidecar = tmp_path / "0.tar.clipx-index"
    sidecar.write_bytes(content)
    assert load_index(path).keys == ["1", "2"]
    assert sidecar.read_bytes() != content


def test_a_sidecar_truncated_anywhere_is_rebuilt(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", TWO)
    whole = listing(load_index(path))
    sidecar = tmp_path / "0.tar.clipx-index"
    content = sidecar.read_bytes()
    for size in range(0, len(content), 7):
        sidecar.write_bytes(content[:size])
        assert listing(load_index(path)) == whole
        assert sidecar.read_bytes() == content


def test_a_head_is_read_from_the_first_line_of_the_sidecar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "0.tar", TWO)
    assert load_head(path) == load_index(path).head
    monkeypatch.setattr(index_module, "load_index", None)  # the first line of the sidecar is enough
    assert load_head(path).samples == 2


def test_a_repeated_key_is_a_duplicate(tmp_path: Path) -> None:
    names = ["a.jpg", "a.txt", "a.jpg", "b.jpg", "a.png", "b.jpg", "c.jpg"]
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    index = load_index(path)
    assert index.keys == ["a", "a", "b", "a", "b", "c"]
    assert index.duplicate.tolist() == [False, True, False, True, True, False]
    assert [len(index.members(i)) for i in range(6)] == [2, 1, 1, 1, 1, 1]


def test_sidecars_go_to_the_cache_where_the_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "data" / "0.tar", TWO)
    (tmp_path / "data" / "0.tar.clipx-index").mkdir()  # even root cannot write over a folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_index(path).keys == ["1", "2"]
    assert len(list((tmp_path / "cache/clipx/index").glob("*.clipx-index"))) == 1
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["0.tar", "0.tar.clipx-index"]
    monkeypatch.setattr(index_module, "build_index", None)  # the second time reads the sidecar
    assert load_index(path).keys == ["1", "2"]


# --- damage ---


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("cut", [0, 1, 511, 513])
def test_a_truncated_tar_keeps_its_whole_samples(tmp_path: Path, format: str, cut: int) -> None:
    """cut: bytes into the last member's header and content"""
    long = f"{LONG}x" if format != "ustar" else "x"  # the other formats need tarfile's walk
    members = {f"{long}1.png": png(1), f"{long}2.png": png(2), "last.png": png(3)}
    path = write_tar(tmp_path / "0.tar", members, format=FORMATS[format])
    last = load_index(path).members(2)[0][1] - 512
    os.truncate(path, last + cut)
    index = load_index(path)
    assert index.keys == [f"{long}1", f"{long}2"]
    assert index.head.truncated
    with path.open("rb") as file:
        ((_, offset, size),) = index.members(1)
        file.seek(offset)
        assert file.read(size) == png(2)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, b"x", png(1)])
def test_a_file_that_is_not_a_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"0\.tar is not a tar file or is cut"):
        load_index(path)


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    index = load_index(write_tar(tmp_path / "0.tar", {}))
    assert len(index) == 0
    assert not index.head.truncated


# --- beside other tools, and in a cache that other processes clear ---


def test_an_index_of_another_tool_stays_as_it_is(tmp_path: Path) -> None:
    """DALI's wds2idx, TorchData and others name theirs `<shard>.idx` or as the shard."""
    path = write_shard(tmp_path / "0.tar", TWO)
    others = {tmp_path / name: name.encode() for name in ("0.tar.idx", "0.idx", "0.tar.index")}
    for file, content in others.items():
        file.write_bytes(content)
    load_index(path)
    assert {file: file.read_bytes() for file in others} == others
    assert (tmp_path / "0.tar.clipx-index").exists()


def test_a_sidecar_may_be_evicted_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process clears the shared cache between the first line and the arrays."""
    path = write_shard(tmp_path / "0.tar", TWO)
    whole = listing(load_index(path))
    loads = json.loads

    def evict_first(text: bytes) -> object:
        (tmp_path / "0.tar.clipx-index").unlink(missing_ok=True)
        return loads(text)

    monkeypatch.setattr(index_module.json, "loads", evict_first)
    assert listing(load_index(path)) == whole


def test_a_shard_that_is_evicted_is_indexed_by_its_open_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_shard(tmp_path / "data" / "0.tar", TWO)
    with path.open("rb") as file:
        path.unlink()
        index = load_index(path, stamp="1", descriptor=file.fileno())
    assert index.keys == ["1", "2"]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []  # no sidecar outlives its shard


def test_second_images_are_counted(tmp_path: Path) -> None:
    samples = {"1": {"png": b"p", "txt": "x", "jpg": b"j"}, "2": {"png": b"p", "txt": "x"}}
    assert load_index(write_shard(tmp_path / "0.tar", samples)).head.second_images == 1
