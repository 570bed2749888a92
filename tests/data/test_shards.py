"""Shards are found as the user writes them, and their index is tarfile's own listing."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import png, write_shard, write_tar

from clipx.data import shards
from clipx.data.shards import ShardIndex, build_index, expand, load_index
from clipx.types import UserError

# --- finding shards ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "a/0.tar",
        "a/1.tar",
        "a/2.tar",
        "a/notes.txt",
        "b/008.tar",
        "b/009.tar",
        "b/010.tar",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", ["a/0.tar", "a/1.tar", "a/2.tar"]),
        ("a/1.tar", ["a/1.tar"]),
        ("a/[12].tar", ["a/1.tar", "a/2.tar"]),
        ("**/0*.tar", ["a/0.tar", "b/008.tar", "b/009.tar", "b/010.tar"]),
        ("a/{0..2}.tar", ["a/0.tar", "a/1.tar", "a/2.tar"]),
        ("b/{008..010}.tar", ["b/008.tar", "b/009.tar", "b/010.tar"]),
        ("b/0{0..1}{0..9}.tar::a", UserError),  # b/000.tar does not exist
        ("b/009.tar::a/{0..1}.tar", ["b/009.tar", "a/0.tar", "a/1.tar"]),
        (["a/2.tar", "b/0*.tar"], ["a/2.tar", "b/008.tar", "b/009.tar", "b/010.tar"]),
    ],
)
def test_patterns_name_shards_in_sorted_order(
    folder: Path, pattern: str | list[str], expected: list[str] | type[UserError]
) -> None:
    if expected is UserError:
        with pytest.raises(UserError, match=r"shard b/000\.tar does not exist"):
            expand(pattern)
    else:
        assert expand(pattern) == [Path(name) for name in expected]


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("c/*.tar", r"no shard matches 'c/\*\.tar' \(looked from /"),
        ("a::c/*.tar", r"no shard matches 'c/\*\.tar'"),
        ("missing.tar", r"shard missing\.tar does not exist"),
        ("a::a/1.tar", r"shard a/1\.tar is listed twice"),
        ("", "no shard matches ''"),
    ],
)
def test_a_pattern_without_shards_is_named(
    folder: Path, pattern: str | list[str], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        expand(pattern)


# --- the index ---


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
def test_index_is_tarfiles_own_listing(tmp_path: Path, format: str, names: str) -> None:
    members = {
        name: None if name in ("a", "a/b") else bytes(700 * i)
        for i, name in enumerate(NAMES[names])
    }
    path = write_tar(tmp_path / "0.tar", members, format=FORMATS[format])
    first = load_index(path)
    assert listing(first) == tarfile_listing(path)
    assert not first.truncated
    assert len(first) == len(first.keys)
    assert listing(load_index(path)) == listing(first)  # from the sidecar
    assert load_index(path).digest == first.digest


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
def test_index_of_any_names_is_tarfiles(
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
    assert load_index(path).digest == first.digest


# --- the sidecar ---

TWO = {"1": {"png": png(1), "txt": "one"}, "2": {"png": png(2), "txt": "two"}}


def test_a_stale_sidecar_is_renewed(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", TWO)
    old = load_index(path)
    write_shard(path, TWO | {"3": {"png": png(3), "txt": "three"}})
    new = load_index(path)
    assert (len(old), len(new)) == (2, 3)
    assert new.digest != old.digest
    assert len(load_index(path)) == 3


def test_a_same_sized_rewrite_is_noticed_by_its_time(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", TWO)
    size = path.stat().st_size
    load_index(path)
    write_shard(path, {"x": TWO["1"], "y": TWO["2"]})
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size
    assert load_index(path).keys == ("x", "y")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short"])
def test_a_broken_sidecar_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = write_shard(tmp_path / "0.tar", TWO)
    sidecar = tmp_path / "0.tar.idx.npz"
    sidecar.write_bytes(content)
    assert load_index(path).keys == ("1", "2")
    assert sidecar.read_bytes() != content


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_a_sidecar_is_never_unpickled(tmp_path: Path) -> None:
    path, target = write_shard(tmp_path / "0.tar", TWO), tmp_path / "executed"
    buffer = io.BytesIO()
    np.savez(buffer, identity=np.array([Payload(target)], dtype=object))
    (tmp_path / "0.tar.idx.npz").write_bytes(buffer.getvalue())
    assert load_index(path).keys == ("1", "2")
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))  # noqa: S301 the payload works
    assert target.exists()


def test_sidecars_go_to_the_cache_where_the_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "data" / "0.tar", TWO)
    (tmp_path / "data" / "0.tar.idx.npz").mkdir()  # root may write anywhere, but not over a folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_index(path).keys == ("1", "2")
    assert len(list((tmp_path / "cache/clipx/index").glob("*.idx.npz"))) == 1
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["0.tar", "0.tar.idx.npz"]
    monkeypatch.setattr(shards, "build_index", None)  # the second time needs no walk
    assert load_index(path).keys == ("1", "2")


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
    assert index.keys == (f"{long}1", f"{long}2")
    assert index.truncated
    with path.open("rb") as file:
        ((_, offset, size),) = index.members(1)
        file.seek(offset)
        assert file.read(size) == png(2)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, b"x", png(1)])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"0\.tar is not a tar file or is cut"):
        load_index(path)


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    index = load_index(write_tar(tmp_path / "0.tar", {}))
    assert len(index) == 0
    assert not index.truncated
