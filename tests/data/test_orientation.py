"""A picture is turned by its EXIF tag wherever it is decoded, or nowhere."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import batch, batches
from PIL import Image, ImageOps
from samples import encoded, picture, write_shard
from torch import Tensor

from clipx.data import decode as module
from clipx.data import orientation
from clipx.data.config import DataConfig
from clipx.data.decode import decode, pixels_of
from clipx.data.decoded_cache import DecodedCache

ORIENTATION = 0x0112
KINDS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100},
}


def tagged(
    value: Any, kind: str = "JPEG", size: tuple[int, int] = (20, 12), seed: int = 1
) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[ORIENTATION] = value
    return encoded(picture(seed, size), kind, exif=exif, **KINDS.get(kind, {}))


def shown(data: bytes) -> Tensor:
    """As Pillow turns it."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", range(1, 9))
def test_each_orientation_is_turned_as_pillow_does(kind: str, value: int) -> None:
    data = tagged(value, kind)
    pixels = decode(data)
    assert pixels.shape == ((3, 20, 12) if value > 4 else (3, 12, 20))
    assert torch.equal(pixels, shown(data))
    assert pixels.stride() == (1, 4 * pixels.shape[2], 4)  # resized without a copy
    stored = decode(data, exif_orientation=False)
    assert torch.equal(stored, decode(tagged(1, kind)))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_other_values_are_none(value: int) -> None:
    for kind in KINDS:
        assert torch.equal(decode(tagged(value, kind)), decode(tagged(1, kind)))


@pytest.mark.parametrize("value", [1, 3, 6, 7])
@pytest.mark.parametrize("times", [1, 2, 4])
def test_a_jpeg_is_turned_alike_by_both_decoders_at_any_scale(value: int, times: int) -> None:
    """And `shrink` gets the sides of the picture as it is shown."""
    pytest.importorskip("simplejpeg")
    data = tagged(value, size=(64, 48))
    shrink = mock.Mock(return_value=times)
    fast = decode(data, shrink=shrink)
    sides = (64, 48) if value > 4 else (48, 64)
    shrink.assert_called_once_with(*sides)
    assert fast.shape == (3, sides[0] // times, sides[1] // times)
    stored = decode(data, shrink=lambda height, width: times, exif_orientation=False)
    assert torch.equal(fast, orientation.turned(stored, value))
    with mock.patch.object(module, "has_simplejpeg", return_value=False):
        assert torch.equal(decode(data, shrink=shrink), fast)


def test_a_file_without_exif_never_reaches_pillows_parser() -> None:
    data = encoded(picture(1), "JPEG", comment=b"Exif\0\0 in a comment, not in a segment of EXIF")
    with mock.patch.object(orientation, "_tag_of", side_effect=AssertionError):
        assert torch.equal(decode(data), decode(data, exif_orientation=False))
        with pytest.raises(AssertionError):
            decode(tagged(6))


def test_a_png_may_have_its_tag_behind_the_pixels() -> None:
    data = tagged(6, "PNG")
    start = data.index(b"eXIf") - 4
    stop = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    chunk = data[start:stop]
    assert zlib.crc32(chunk[4:-4]) == struct.unpack(">I", chunk[-4:])[0]
    rest = data[:start] + data[stop:]
    end = rest.index(b"IEND") - 4
    assert torch.equal(decode(rest[:end] + chunk + rest[end:]), decode(data))


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),  # the others write EXIF anew
    changes=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_exif_leaves_the_picture_as_stored_or_turned(
    kind: str, changes: list[tuple[int, int]]
) -> None:
    exif = bytearray(b"Exif\0\0" + tagged_exif())
    for place, value in changes:
        exif[6 + place % (len(exif) - 6)] = value
    data = encoded(picture(1), kind, exif=bytes(exif), **KINDS[kind])
    stored = decode(data, exif_orientation=False)
    turned = decode(data)
    assert any(torch.equal(turned, orientation.turned(stored, value)) for value in range(1, 9))


def tagged_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[ORIENTATION] = 6
    exif[0x8769] = {0x9003: "2026:11:30 10:00:00"}
    return exif.tobytes().removeprefix(b"Exif\0\0")


def test_a_pillow_image_is_turned_while_it_has_its_tag() -> None:
    data = tagged(6)
    for image in (Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data)).convert("RGB")):
        assert torch.equal(pixels_of(image), shown(data))
        assert pixels_of(image, exif_orientation=False).shape == (3, 12, 20)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert torch.equal(pixels_of(turned), shown(data))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A shard of pictures that stand or lie only by their tags: red above, or else blue."""
    samples = {}
    for number, value in enumerate((1, 6, 3, 8, 2, 5)):
        samples[f"k{number}"] = {"jpg": tagged(value, seed=number), "txt": f"photo {number}"}
    write_shard(tmp_path / "photos/0.tar", samples)
    return tmp_path / "photos"


@pytest.mark.parametrize("way", [{}, {"decoded_cache": "cache"}, {"decode": "scaled"}])
def test_training_sees_them_turned_with_and_without_a_cache(
    photos: Path, tmp_path: Path, way: dict[str, str]
) -> None:
    """A folder of decoded pictures that both settings share keeps them apart."""
    plain = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "workers": 0}
    way = {
        name: str(tmp_path / "cache") if value == "cache" else value for name, value in way.items()
    }
    seen = {}
    for turns in (False, True):
        loader = batches(photos, **plain, **way, exif_orientation=turns)
        for _ in range(2):  # from the shard, then from the cache
            loaded = batch(loader, 0)
        seen[turns] = loaded
        config = DataConfig(shards=str(photos), exif_orientation=turns)
        for key, view in zip(loaded.keys, loaded.views["image"], strict=True):
            value = (1, 6, 3, 8, 2, 5)[int(key[1:])]
            data = tagged(value, seed=int(key[1:]))
            expected = shown(data) if turns else decode(data, exif_orientation=False)
            assert torch.equal(config.pixels(data), expected)
            assert torch.equal(view, loader.fit(expected, loader.image_size))
    assert seen[True].fingerprint == seen[False].fingerprint
    assert not torch.equal(seen[True].views["image"], seen[False].views["image"])


def test_a_cache_of_decoded_pictures_has_a_folder_for_each_setting(tmp_path: Path) -> None:
    limits = {"max_pixels": 10_000, "max_bytes": 10_000}
    turned = DecodedCache(tmp_path, 100, **limits)
    stored = DecodedCache(tmp_path, 100, **limits, exif_orientation=False)
    assert turned.folder != stored.folder
