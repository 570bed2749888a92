"""The contract of `clipx.data.sample.Source`, tested for all sources but tars."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from samples import jpeg, write_shard

from clipx.data.decode import BadImage, decode
from clipx.data.sample import Raw, SampleError, Source
from clipx.data.sources import folder, table, webdataset
from clipx.data.sources._rows import Strings
from clipx.data.sources.folder import Folder
from clipx.data.sources.synthetic import Synthetic
from clipx.data.sources.table import Table

NUM = 23
IMAGES = [jpeg(n, (20 + n, 30)) for n in range(NUM)]
CAPTIONS = [f"caption of {n}" for n in range(NUM)]


def write(root: Path) -> None:
    """The same samples in every kind of store."""
    paths = [f"{'abc'[n * 3 // NUM]}/{n:02d}.jpg" for n in range(NUM)]
    for path, image, caption in zip(paths, IMAGES, CAPTIONS, strict=True):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(image)
        (root / path).with_suffix(".txt").write_text(caption)
    lines = [f"{path},{caption}" for path, caption in zip(paths, CAPTIONS, strict=True)]
    (root / "t.csv").write_text("\n".join(["path,txt", *lines]))
    table = pa.table({"path": paths, "txt": CAPTIONS})
    parquet.write_table(table, root / "paths.parquet", row_group_size=7)
    table = pa.table({"image": IMAGES, "txt": CAPTIONS})
    parquet.write_table(table, root / "images.parquet", row_group_size=5)


OPEN: dict[str, Callable[[Path], Source]] = {
    "folder": lambda root: Folder(root, shard_samples=5),
    "csv": lambda root: Table([root / "t.csv"], shard_samples=5),
    "parquet of paths": lambda root: Table([root / "paths.parquet"], shard_samples=5),
    "parquet of images": lambda root: Table([root / "images.parquet"]),
    "synthetic": lambda root: Synthetic(NUM, size=32, seed=0, shards=5),
}


@pytest.fixture(params=OPEN)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(kind: str, tmp_path: Path) -> Source:
    write(tmp_path / "corpus")
    return OPEN[kind](tmp_path / "corpus")


def addresses(source: Source) -> list[tuple[int, int]]:
    return [(s, n) for s, size in enumerate(source.sizes.tolist()) for n in range(size)]


def rows(source: Source) -> list[Raw]:
    return [source.read(*address) for address in addresses(source)]


def answers(source: Source) -> tuple[object, ...]:
    """All properties of a source except the names of its shards."""
    keys = [source.key(*address) for address in addresses(source)]
    return source.sizes.tolist(), list(source.digests), list(source.faults), keys, rows(source)


def test_a_source_holds_the_samples_that_were_written(source: Source, kind: str) -> None:
    samples = rows(source)
    assert len(samples) == NUM
    if kind != "synthetic":
        assert [raw.image for raw in samples] == IMAGES
        texts = [raw.text["txt"] for raw in samples]
        captions = [caption.encode() for caption in CAPTIONS] if kind == "folder" else CAPTIONS
        assert texts == captions
        assert not source.is_remote
    assert all(decode(raw.image).shape[0] == 3 for raw in samples)


def test_shards_have_sizes_digests_names_and_keys(source: Source) -> None:
    assert source.sizes.dtype == np.int64
    assert len(source.sizes) == len(source.digests) == 5
    assert len(set(source.digests)) == len(source.digests)
    assert len({source.name(shard) for shard in range(len(source.sizes))}) == len(source.sizes)
    assert list(source.faults) == []
    for shard, size in enumerate(source.sizes.tolist()):
        keys = [source.key(shard, n) for n in range(size)]
        assert [source.read(shard, n).key for n in range(size)] == keys
        assert len(set(keys)) == size


def test_a_pickled_source_is_small_and_the_same(source: Source) -> None:
    """Also after it has read: open files are not pickled."""
    before = answers(source)
    data = pickle.dumps(source)
    assert len(data) < 5000 < sum(map(len, IMAGES)) / 2
    assert answers(pickle.loads(data)) == before  # noqa: S301 our own bytes
    assert answers(source) == before


_INHERITED: list[Source] = []


def _in_child(address: tuple[int, int]) -> Raw:
    return _INHERITED[0].read(*address)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # from Python 3.12 on
def test_threads_and_forked_processes_read_the_same(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(source)
    several = addresses(source) * 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda a: source.read(*a), several)) == expected * 4
    monkeypatch.setattr(sys.modules[__name__], "_INHERITED", [source])
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.map(_in_child, several, chunksize=7) == expected * 4


def test_a_source_that_was_moved_is_the_same(source: Source, kind: str, tmp_path: Path) -> None:
    before = answers(source)
    copied = tmp_path / "elsewhere" / "copy"
    shutil.copytree(tmp_path / "corpus", copied, copy_function=shutil.copyfile)  # with new times
    shutil.rmtree(tmp_path / "corpus")
    assert answers(OPEN[kind](copied)) == before


def test_prefetch_changes_nothing(source: Source) -> None:
    before = answers(source)
    source.prefetch(range(len(source.sizes)))
    assert answers(source) == before


def test_strings_are_a_list_of_bytes() -> None:
    items = [b"one", b"", b"\0", b"caf\xe9", b""]
    strings = Strings(items)
    assert [strings[n] for n in range(len(strings))] == items
    assert len(Strings([])) == 0
    assert len(pickle.dumps(Strings([b"12345678"] * 10_000))) < 17 * 10_000


# --- files that are not read ---


@pytest.fixture(params=["folder", "csv"])
def of_files(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Source]:
    """Opens a source of one sample, whose image is the file `0.png`."""

    def opened() -> Source:
        if request.param == "folder":
            return folder.Config(path=f"file://{tmp_path}").build()
        (tmp_path / "t.csv").write_text(f"filepath,title\nfile://{tmp_path}/0.png,x\n")
        return table.Config(path=f"file://{tmp_path}/t.csv").build()

    return opened


def test_a_picture_that_is_too_large_is_not_read(
    of_files: Callable[[], Source], tmp_path: Path
) -> None:
    """A sparse file of 30 GB."""
    (tmp_path / "0.png").write_bytes(b"")
    os.truncate(tmp_path / "0.png", 30 << 30)
    with pytest.raises(BadImage, match="32212254720 bytes exceed max_image_bytes 540000000"):
        of_files().read(0, 0)
    os.truncate(tmp_path / "0.png", 1000)
    with pytest.raises(BadImage, match="1000 bytes exceed max_image_bytes 999"):
        of_files().read(0, 0, max_image_bytes=999)
    assert len(of_files().read(0, 0, max_image_bytes=1000).image) == 1000


@pytest.mark.parametrize("kind", ["named pipe", "device"])
def test_only_regular_files_are_read(
    of_files: Callable[[], Source], tmp_path: Path, kind: str
) -> None:
    """Reading a pipe without a writer would wait forever, and /dev/zero never ends."""
    if kind == "named pipe":
        os.mkfifo(tmp_path / "0.png")
    else:
        (tmp_path / "0.png").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="is not a regular file"):
        of_files().read(0, 0)


def test_an_oversized_text_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"x")
    (tmp_path / "0.txt").touch()
    os.truncate(tmp_path / "0.txt", 1 << 35)
    with pytest.raises(SampleError, match=r"0\.txt has 34,359,738,368 bytes"):
        folder.Config(path=str(tmp_path)).build().read(0, 0)


@pytest.mark.parametrize("extension", ["png", "txt"])
def test_a_member_of_a_tar_that_is_too_large_is_not_read(tmp_path: Path, extension: str) -> None:
    members = {"png": b"x", "txt": b"x"} | {extension: bytes((16 << 20) + 1)}
    path = write_shard(tmp_path / "0.tar", {"a": members})
    source = webdataset.Config(str(path)).build()
    with pytest.raises((SampleError, BadImage), match=r"(16777217|16,777,217) bytes"):
        source.read(0, 0, max_image_bytes=1 << 20)
