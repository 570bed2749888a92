"""A folder gives its images with the text beside them, in the order of their sorted paths."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from samples import as_bytes, heic, jpeg, png

from clipx.config import build
from clipx.data.decode import BadImage, decode
from clipx.data.sample import SampleError
from clipx.data.sample_files import read_ends
from clipx.data.sources import _contents
from clipx.data.sources import folder as source
from clipx.data.sources.folder import Folder
from clipx.types import UserError


def write(root: Path, files: Mapping[str, Any]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_bytes(content))
    return root


def keys(folder: Folder) -> list[str]:
    return [folder.key(s, n) for s, size in enumerate(folder.sizes) for n in range(size)]


def only(root: Path, files: Mapping[str, Any]) -> Folder:
    opened = Folder(write(root, files))
    assert opened.sizes.tolist() == [1]
    return opened


def test_images_are_found_at_any_depth_in_sorted_order(tmp_path: Path) -> None:
    names = ("b.PNG", "a.jpg", "c/d/e.Jpeg", "a-b/x.webp", "a/x.jpg", "v1.2.png")
    ignored = ("a.txt", "n.txt", "x.ppm", "png", ".hidden.jpg", ".git/y.jpg", "._a.jpg", "z.tar")
    write(tmp_path, {name: name for name in (*names, *ignored)})
    opened = build(source.Config, {"path": str(tmp_path)}, where="a test").build()
    assert keys(opened) == ["a", "a-b/x", "a/x", "b", "c/d/e", "v1.2"]
    stored = [opened.read(0, n).image.decode() for n in range(6)]
    assert stored == ["a.jpg", "a-b/x.webp", "a/x.jpg", "b.PNG", "c/d/e.Jpeg", "v1.2.png"]
    assert opened.faults == []


@pytest.mark.parametrize("shard_samples", [1, 3, 7, 8])
def test_shards_are_runs_of_the_sorted_keys(tmp_path: Path, shard_samples: int) -> None:
    write(tmp_path, {f"{n}/{n}.png": png(n) for n in range(7)})
    opened = Folder(tmp_path, shard_samples=shard_samples)
    assert opened.sizes.sum() == 7
    assert set(opened.sizes[:-1].tolist()) <= {shard_samples}
    assert keys(opened) == [f"{n}/{n}" for n in range(7)]
    assert opened.read(len(opened.sizes) - 1, opened.sizes[-1] - 1).image == png(6)


TEXTS: dict[str, tuple[dict[str, Any], dict[str, bytes]]] = {
    "txt": ({"a.txt": "a cat\n"}, {"txt": b"a cat\n"}),
    "several lines are one caption": ({"a.txt": "a cat,\nasleep"}, {"txt": b"a cat,\nasleep"}),
    "byte order mark": ({"a.txt": "\ufeffa cat"}, {"txt": b"a cat"}),
    "not UTF-8": ({"a.txt": b"caf\xe9"}, {"txt": b"caf\xe9"}),
    "upper case": ({"a.TXT": "a cat"}, {"txt": b"a cat"}),
    "two": ({"a.TXT": "first by name", "a.txt": "second"}, {"txt": b"first by name"}),
    "json": ({"a.json": {"alt": "x"}}, {"json": b'{"alt": "x"}'}),
    "both": ({"a.txt": "x", "a.json": "{"}, {"txt": b"x", "json": b"{"}),
    "neither": ({"b.txt": "of none", "a": "x"}, {}),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_is_read_from_the_files_beside_the_image(tmp_path: Path, case: str) -> None:
    files, expected = TEXTS[case]
    raw = only(tmp_path, {"a.jpg": jpeg(1), **files}).read(0, 0)
    assert (raw.key, raw.image, raw.text) == ("a", jpeg(1), expected)


def test_a_second_image_of_the_same_name_is_a_duplicate(tmp_path: Path) -> None:
    images = {"a.webp": b"4", "a.png": b"3", "a.jpg": b"2", "a.JPG": b"1", "b.png": b"0"}
    opened = Folder(write(tmp_path, images | {"a.txt": "x"}))
    assert sorted(keys(opened)) == ["a", "a.jpg", "a.png", "a.webp", "b"]
    assert keys(opened)[0] == "a"
    assert opened.read(0, 0).image == b"1"
    for row in (1, 2, 3):
        with pytest.raises(SampleError, match="another image has the same name") as caught:
            opened.read(0, row)
        assert caught.value.stage == "key"
    assert opened.read(0, 4).image == b"0"


def test_heic_is_a_bad_sample_until_it_is_converted(tmp_path: Path) -> None:
    """Its bytes are read, and `decode` refuses them with the way out."""
    files = {"a.HEIC": heic(), "a.txt": "a photo", "b.jpg": jpeg(1), "b.heif": heic()}
    opened = Folder(write(tmp_path, files))
    assert keys(opened) == ["a", "b"]
    with pytest.raises(BadImage, match="HEIC cannot be read; convert the file to JPEG"):
        decode(opened.read(0, 0).image)
    assert opened.read(0, 1).image == jpeg(1)
    raw = Folder(write(tmp_path, {"a.jpg": jpeg(2)})).read(0, 0)
    assert (raw.image, raw.text) == (jpeg(2), {"txt": b"a photo"})


@pytest.mark.parametrize("gone", ["a.png", "a.txt"])
def test_a_file_that_vanishes_is_an_error_of_reading(tmp_path: Path, gone: str) -> None:
    opened = only(tmp_path, {"a.png": png(1), "a.txt": "x"})
    (tmp_path / gone).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(gone)):
        opened.read(0, 0)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = write(tmp_path / "root", {"a/1.png": png(1)})
    write(tmp_path / "elsewhere", {"2.png": png(2)})
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "across").symlink_to(root / "a")
    (root / "dead.png").symlink_to(tmp_path / "nowhere")
    (root / "self.png").symlink_to(root / "self.png")
    opened = Folder(root)
    assert keys(opened) == ["a/1", "dead", "linked/2", "linked/across/1", "self"]
    for row in (1, 4):
        with pytest.raises(OSError, match=r"dead\.png|self\.png"):
            opened.read(0, row)


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    raw = only(tmp_path, {f"{name}.jpg": jpeg(1), f"{name}.txt": "x"}).read(0, 0)
    assert (raw.key, raw.image, raw.text) == (name, jpeg(1), {"txt": b"x"})


def test_a_folder_that_cannot_be_listed_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a/1.png": png(1), "b/2.png": png(2)})
    scandir = os.scandir

    def refuse(path: bytes) -> Any:
        if path.endswith(b"/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list any folder
    opened = Folder(tmp_path)
    assert keys(opened) == ["a/1"]
    (fault,) = opened.faults
    assert (fault.shard, fault.key, fault.position) == (str(tmp_path / "b"), "", -1)
    assert (fault.stage, fault.error) == ("read", "PermissionError")


@pytest.mark.parametrize(
    ("name", "files", "complaint"),
    [
        ("gone", {}, r"image folder .*gone is not a folder \(looked from /"),
        ("a.png", {"a.png": png(1)}, r"a\.png is not a folder"),
        (".", {"a.txt": "x"}, r"has no \.jpg, \.jpeg, \.png, \.webp, .*\.avif file at any depth"),
        (".", {"0.tar": b""}, "for its .tar shards, use name: webdataset"),
    ],
)
def test_a_folder_without_images_is_refused(
    tmp_path: Path, name: str, files: dict[str, Any], complaint: str
) -> None:
    write(tmp_path, files)
    with pytest.raises(UserError, match=complaint):
        Folder(tmp_path / name)


@pytest.mark.parametrize(
    ("changed", "shards"),
    [
        ({"1.png": png(1, (30, 30))}, {0}),
        ({"1.txt": "longer"}, {0}),
        ({"4.json": {}}, {1}),
        ({"4.png": b""}, {1}),
        ({"9.png": png(9)}, {2}),
        ({"1b.png": png(9)}, {0, 1, 2}),  # the samples after it move
    ],
)
def test_digests_name_the_shards_that_changed(
    tmp_path: Path, changed: dict[str, Any], shards: set[int]
) -> None:
    files = {f"{n}.png": png(n) for n in range(8)} | {f"{n}.txt": "x" for n in range(8)}
    old = Folder(write(tmp_path, files), shard_samples=3).digests
    new = Folder(write(tmp_path, changed), shard_samples=3).digests
    assert {n for n, (a, b) in enumerate(zip(old, new, strict=True)) if a != b} == shards


def test_a_digest_covers_contents_and_no_times(tmp_path: Path) -> None:
    files = {f"{n}.png": png(n) for n in range(8)} | {f"{n}.txt": "x" for n in range(8)}
    old = Folder(write(tmp_path, files), shard_samples=3).digests
    write(tmp_path, {"4.txt": "y"})
    new = Folder(tmp_path, shard_samples=3).digests
    assert [a == b for a, b in zip(old, new, strict=True)] == [True, False, True]
    assert [digest.partition(":")[0] for digest in old] == [d.partition(":")[0] for d in new]
    shutil.copytree(tmp_path, tmp_path.with_name("copy"), copy_function=shutil.copyfile)
    assert Folder(tmp_path.with_name("copy"), shard_samples=3).digests == new


def test_contents_are_read_once_and_where_a_time_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []

    def noted(path: bytes, side: int) -> bytes:
        read.append(path.rpartition(b"/")[2])
        return read_ends(path, side)

    monkeypatch.setattr(_contents, "read_ends", noted)
    files = {f"{n}.png": png(n) for n in range(5)}
    first = Folder(write(tmp_path, files), shard_samples=3).digests
    assert len(read) == 5
    assert Folder(tmp_path, shard_samples=3).digests == first
    assert len(read) == 5
    os.utime(tmp_path / "4.png", ns=(1, 1))
    assert Folder(tmp_path, shard_samples=3).digests == first
    assert sorted(read[5:]) == [b"3.png", b"4.png"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', "[" * 9999])
def test_damaged_stored_digests_are_computed_again(tmp_path: Path, content: str) -> None:
    first = Folder(write(tmp_path, {"0.png": png(0)})).digests
    store = _contents.store_path(tmp_path)
    store.write_text(content)
    assert Folder(tmp_path).digests == first
    assert store.read_text() != content
