"""Images of the decoded cache are those of the decoder, whatever happened to its files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import batch, batches, same
from ranks import server
from samples import encoded, jpeg, picture, png, png_claiming

from clipx.data import decode
from clipx.data import decoded_cache as module
from clipx.data.decode import BadImage
from clipx.data.decoded_cache import DecodedCache
from clipx.data.loader import load
from clipx.types import UserError

IMAGES = [
    png(0),
    jpeg(1, (33, 21)),
    png(2, (5, 40)),
    encoded(picture(3, (9, 7), "L"), "PNG"),
    encoded(picture(4, (16, 16)), "WEBP"),
]


def open_cache(folder: Path, num_images: int = 100, **limits: int) -> DecodedCache:
    bounds = {"max_pixels": decode.MAX_PIXELS, "max_bytes": decode.MAX_BYTES, **limits}
    return DecodedCache(folder, num_images, **bounds)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The images that were decoded, in order."""
    calls: list[bytes] = []
    original = decode.decode

    def recording(data: bytes, **bounds: int) -> torch.Tensor:
        calls.append(data)
        return original(data, **bounds)

    monkeypatch.setattr(decode, "decode", recording)
    return calls


def assert_exact(cache: DecodedCache) -> None:
    for data in IMAGES:
        pixels = cache.decode(data)
        expected = decode.decode(data)
        assert torch.equal(pixels, expected)
        assert pixels.stride() == expected.stride()  # the layout that is resized without a copy


def test_an_image_is_decoded_once(tmp_path: Path, decoded: list[bytes]) -> None:
    for cache in (open_cache(tmp_path), open_cache(tmp_path)):  # a second process or run
        for _ in range(2):
            for data in IMAGES:
                cache.decode(data)
    assert decoded == IMAGES
    assert_exact(open_cache(tmp_path))


def test_another_image_of_the_same_name_is_decoded(tmp_path: Path) -> None:
    """Content decides: one changed byte is another image."""
    cache = open_cache(tmp_path)
    cache.decode(png(0))
    assert torch.equal(cache.decode(png(1)), decode.decode(png(1)))


def test_other_limits_have_another_cache(tmp_path: Path) -> None:
    data = png(0)
    open_cache(tmp_path).decode(data)
    with pytest.raises(BadImage, match="20 x 16 pixels exceed max_image_pixels 319"):
        open_cache(tmp_path, max_pixels=319).decode(data)
    with pytest.raises(BadImage, match="exceed max_image_bytes 10"):
        open_cache(tmp_path, max_bytes=10).decode(data)


@pytest.mark.parametrize("data", [b"", b"<html>", jpeg(0)[:-30], png_claiming(60_000, 60_000)])
def test_bad_images_are_bad_each_time(tmp_path: Path, data: bytes) -> None:
    cache = open_cache(tmp_path)
    with pytest.raises(BadImage) as expected:
        decode.decode(data)
    for _ in range(2):
        with pytest.raises(BadImage) as error:
            cache.decode(data)
        assert str(error.value) == str(expected.value)


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "gone":
        path.unlink()
    elif kind == "empty":
        os.truncate(path, 0)
    elif kind == "cut":
        os.truncate(path, len(content) // 2)
    else:
        path.write_bytes(b"\0" * len(content) if kind == "zeros" else os.urandom(len(content)))


@pytest.mark.parametrize("kind", ["gone", "empty", "cut", "zeros", "noise"])
def test_pixels_that_were_lost_are_decoded_anew(tmp_path: Path, kind: str) -> None:
    """As after a power loss, which may keep the table and not the pixels."""
    cache = open_cache(tmp_path)
    assert_exact(cache)
    damage(cache.folder / "pixels-00000", kind)
    assert_exact(open_cache(tmp_path))
    assert_exact(open_cache(tmp_path))


@pytest.mark.parametrize("kind", ["gone", "empty", "cut", "zeros", "noise"])
def test_a_damaged_table_gives_no_wrong_image(tmp_path: Path, kind: str) -> None:
    cache = open_cache(tmp_path)
    assert_exact(cache)
    damage(cache.folder / "table", kind)
    assert_exact(open_cache(tmp_path))


def rows_of(cache: DecodedCache) -> list[int]:
    """Places of the rows in use."""
    table = (cache.folder / "table").read_bytes()
    size = module._ROW.size
    return [at for at in range(0, len(table), size) if table[at : at + 16] != bytes(16)]


def test_a_row_of_two_halves_is_no_image(tmp_path: Path) -> None:
    """Two processes that write into one place at once: the digest of one, the pixels of another."""
    cache = open_cache(tmp_path)
    assert_exact(cache)
    first, second, *_ = rows_of(cache)
    with (cache.folder / "table").open("r+b") as table:
        table.seek(second + 16)
        rest = table.read(module._ROW.size - 16)
        table.seek(first + 16)
        table.write(rest)
    assert_exact(open_cache(tmp_path))


def test_a_row_with_the_shape_of_another_is_no_image(tmp_path: Path) -> None:
    """Of as many pixels, so that the content is whole."""
    cache = open_cache(tmp_path)
    cache.decode(IMAGES[0])
    (place,) = rows_of(cache)
    content = bytearray((cache.folder / "table").read_bytes())
    row = list(module._ROW.unpack_from(content, place))
    row[3], row[4] = row[4], row[3]
    module._ROW.pack_into(content, place, *row)
    (cache.folder / "table").write_bytes(content)
    assert_exact(open_cache(tmp_path))


def test_a_folder_that_vanishes_ends_the_writing_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = open_cache(tmp_path), open_cache(tmp_path)
    before.decode(IMAGES[0])  # has its files open
    shutil.rmtree(tmp_path)
    for cache in (before, after):
        assert_exact(cache)
    assert "keeps no further images" in capsys.readouterr().err


def test_a_full_table_keeps_decoding(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, num_images=1)
    images = [png(n) for n in range(3 * cache.num_rows)]
    for _ in range(2):
        for data in images:
            assert torch.equal(cache.decode(data), decode.decode(data))
    assert len(rows_of(cache)) == cache.num_rows


def test_a_table_for_its_images_keeps_them_all(tmp_path: Path, decoded: list[bytes]) -> None:
    images = [png(n, (3, 2)) for n in range(1000)]
    cache = open_cache(tmp_path, num_images=1000)
    for data in images * 2:
        cache.decode(data)
    assert len(decoded) == 1000


def test_a_full_disk_ends_the_writing_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = open_cache(tmp_path)
    cache.decode(IMAGES[0])
    with monkeypatch.context() as patch:
        patch.setattr("clipx.data.decoded_cache.os.write", full)
        assert_exact(cache)
    assert capsys.readouterr().err.count("keeps no further images") == 1
    assert_exact(open_cache(tmp_path))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"data\.decoded_cache .*file cannot be written: .* null"):
        open_cache(tmp_path / "file")


def decode_many(cache: DecodedCache, images: list[bytes], answers: Any) -> None:
    wrong = 0
    for data in images:
        wrong += not torch.equal(cache.decode(data), decode.decode(data))
    answers.put(wrong)


@pytest.mark.parametrize("method", ["fork", "pickled"])
def test_processes_share_a_cache(tmp_path: Path, method: str, decoded: list[bytes]) -> None:
    """Four at once, in a small table, so that they write into the same places."""
    images = [png(n, (4, 3)) for n in range(150)]
    cache = open_cache(tmp_path, num_images=40)
    cache.decode(images[0])  # the parent has files open
    context: Any = multiprocessing.get_context("fork") if method == "fork" else server()
    answers = context.SimpleQueue()
    children = []
    for number in range(4):
        order = [*images[number * 10 :], *images[: number * 10]] * 2
        children.append(context.Process(target=decode_many, args=(cache, order, answers)))
    for child in children:
        child.start()
    assert [answers.get() for _ in children] == [0] * 4
    for child in children:
        child.join()
    decoded.clear()
    for data in images[:20]:
        cache.decode(data)
    assert len(decoded) < 20  # the children's images are found here


def test_a_pickled_cache_is_the_same(tmp_path: Path, decoded: list[bytes]) -> None:
    cache = open_cache(tmp_path)
    cache.decode(IMAGES[0])
    again = pickle.loads(pickle.dumps(cache))  # noqa: S301 our own bytes
    again.decode(IMAGES[0])
    assert len(decoded) == 1


AUGMENTATIONS = [
    {"crop_scale": (1, 1), "crop_ratio": (1, 1)},
    {"crop_scale": (0.3, 1.0), "flip": 0.5, "color_jitter": (0.4, 0.4, 0.2, 0.1)},
]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on 1 core
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("settings", AUGMENTATIONS, ids=["whole", "random"])
def test_batches_are_the_same_with_and_without(
    corpus: Path, tmp_path: Path, settings: dict[str, Any], workers: int
) -> None:
    """From the first epoch, which fills the cache, to the third; and for another rank's share."""
    cached = settings | {"decoded_cache": str(tmp_path / "cache"), "workers": workers}
    plain = list(load(batches(corpus, **settings), 0, 6))
    assert all(map(same, load(batches(corpus, **cached), 0, 6), plain))
    assert all(map(same, load(batches(corpus, **cached), 0, 6), plain))
    share = {"rank": 1, "world_size": 2}
    expected = batch(batches(corpus, **settings, **share), 3)
    assert same(batch(batches(corpus, **cached, **share), 3), expected)
