"""GIF, BMP, TIFF and AVIF beside JPEG, PNG and WebP, as a person sees them; HEIC with a way out."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from samples import encoded, heic, picture, png, write_shard

from clipx.data import decode as module
from clipx.data.decode import BadImage, decode
from clipx.data.sources import folder, table, webdataset
from clipx.evaluators import test_sets
from clipx.types import UserError

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")


def rgb(data: bytes) -> list[tuple[int, ...]]:
    """Of all pixels, row by row."""
    pixels = decode(data).flatten(1).T
    return [tuple(row) for row in pixels.tolist()]


def palette(*colors: tuple[int, int, int]) -> Image.Image:
    """A row of pixels of these colors."""
    image = Image.new("P", (len(colors), 1))
    image.putpalette([level for color in colors for level in color])
    image.putdata(range(len(colors)))
    return image


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_picture_without_loss_has_the_pixels_of_its_png(kind: str, mode: str) -> None:
    image = picture(3, (21, 13))
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    if kind == "GIF" and mode == "RGB":
        image = image.quantize(256)  # which is all that a GIF can hold
    assert torch.equal(decode(encoded(image, kind)), decode(encoded(image, "PNG")))


def test_a_gif_is_its_first_frame_on_white() -> None:
    frames = [palette(RED, GREEN, BLUE), palette(BLUE, BLUE, BLUE)]
    plain = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert rgb(plain) == [RED, GREEN, BLUE]
    clear = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=1)
    assert rgb(clear) == [RED, WHITE, BLUE]


def test_a_tiff_of_several_pages_is_its_first() -> None:
    pages = [Image.new("RGB", (2, 1), color) for color in (RED, BLUE)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert rgb(data) == [RED, RED]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK"])
def test_a_tiff_of_any_compression_is_read(compression: str, mode: str) -> None:
    image = picture(4, (20, 16)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize((20, 16)))
    data = encoded(image, "TIFF", compression=compression)
    expected = module.pixels_of(image)
    assert torch.equal(decode(data), expected)


def tiff_of_16_bits(pixels: np.ndarray) -> bytes:
    """pixels: (H, W, 3) uint16; uncompressed, as a scanner or a raw converter writes it"""
    height, width, channels = pixels.shape
    content = pixels.astype("<u2").tobytes()
    entries = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height)]
    entries += [(279, 4, 1, len(content)), (258, 3, channels, 8 + len(content))]
    directory = struct.pack("<H", len(entries))
    for entry in sorted(entries):
        directory += struct.pack("<HHII", *entry)
    bits = struct.pack("<HHH", 16, 16, 16)
    start = 8 + len(content) + len(bits)
    return b"II*\0" + struct.pack("<I", start) + content + bits + directory + bytes(4)


def test_sixteen_bits_of_a_tiff_are_scaled_to_eight() -> None:
    levels = np.array([[[0x0000, 0x80FF, 0xFFFF], [0x1234, 0x7F00, 0x00FF]]], dtype=np.uint16)
    assert rgb(tiff_of_16_bits(levels)) == [(0, 0x80, 0xFF), (0x12, 0x7F, 0)]
    gray = Image.fromarray(np.array([[0, 0x80FF, 0xFFFF]], dtype=np.uint16))
    assert rgb(encoded(gray, "TIFF")) == [(0, 0, 0), (0x80, 0x80, 0x80), WHITE]


def test_floats_are_refused_since_their_range_is_unknown() -> None:
    data = encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), "TIFF")
    with pytest.raises(BadImage, match=r"pixels are floats, .* store 8 or 16 bits"):
        decode(data)


@needs_avif
def test_an_avif_is_read_and_its_transparency_is_on_white() -> None:
    image = picture(5, (40, 24))
    apart = decode(encoded(image, "AVIF", quality=95)).int() - module.pixels_of(image).int()
    assert apart.abs().float().mean() < 3
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert set(rgb(encoded(clear, "AVIF", quality=100))) == {WHITE}


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_the_limits_hold_for_each_format(kind: str) -> None:
    data = encoded(picture(0), kind)
    assert decode(data, max_pixels=320).shape == (3, 16, 20)
    with pytest.raises(BadImage, match="20 x 16 pixels exceed max_image_pixels 319"):
        decode(data, max_pixels=319)
    with pytest.raises(BadImage, match="max_image_bytes"):
        decode(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize("side", [60_000, 20_000])
def test_a_tiff_whose_tiles_claim_more_than_the_picture_is_refused(side: int) -> None:
    """One tile of 3.6 or 0.4 billion pixels, in a file of some hundred bytes."""
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1)]
    entries += [(277, 3, 1, 1), (322, 4, 1, side), (323, 4, 1, side)]
    entries += [(324, 4, 1, 8), (325, 4, 1, 8)]
    directory = struct.pack("<H", len(entries))
    for entry in entries:
        directory += struct.pack("<HHII", *entry)
    data = b"II*\0" + struct.pack("<I", 16) + bytes(8) + directory + bytes(4)
    with pytest.raises(BadImage, match=f"tiles of {side} x {side} pixels exceed max_image_pixels"):
        decode(data)


@pytest.mark.parametrize("major", [b"heic", b"mif1", b"heix"])
def test_heic_is_refused_with_the_way_out(major: bytes) -> None:
    with pytest.raises(BadImage, match=r"^HEIC cannot be read; convert .* `heif-convert .* `sips"):
        decode(heic(major))


def test_a_file_that_is_no_heic_is_not_taken_for_one() -> None:
    video = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"
    with pytest.raises(BadImage, match="not readable as JPEG, PNG"):
        decode(video)


SHOWN: dict[str, Any] = {"gif": "GIF", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF"}


def files() -> dict[str, bytes]:
    """A picture of each extension."""
    found = {name: encoded(picture(1).quantize(64), kind) for name, kind in SHOWN.items()}
    if features.check("avif"):
        found["avif"] = encoded(picture(1), "AVIF")
    return found


def test_shards_folders_tables_and_test_sets_take_each_extension(tmp_path: Path) -> None:
    """In shards also as the two images of a pair."""
    for extension, data in files().items():
        root = tmp_path / extension
        expected = decode(data)
        write_shard(root / "shards/0.tar", {"k": {extension: data, "txt": "x"}})
        write_shard(root / "pairs/0.tar", {"k": {f"a.{extension}": data, "b.png": png(0)}})
        (root / "cat").mkdir()
        (root / f"cat/a.{extension.upper()}").write_bytes(data)
        (root / "cat/a.txt").write_text("x")
        (root / "table.csv").write_text(f"filepath,title\ncat/a.{extension.upper()},x\n")
        sources = {
            "shards": webdataset.Config(str(root / "shards")),
            "folder": folder.Config(str(root / "cat")),
            "table": table.Config(str(root / "table.csv")),
        }
        for name, config in sources.items():
            image = config.build().read(0, 0).image
            assert torch.equal(decode(image), expected), (extension, name)
        pair = webdataset.Config(str(root / "pairs")).build().read(0, 0, images=("a", "b"))
        assert (pair.image, pair.second_image) == (data, png(0))
        images, labels = test_sets.read_class_folders(root, ["cat"])
        assert labels == [0]
        assert torch.equal(images.image(0), expected)


def test_a_test_set_with_heic_is_refused_until_it_is_converted(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.jpg").write_bytes(encoded(picture(1), "JPEG"))
    (tmp_path / "cat/b[1].HEIC").write_bytes(heic())
    with pytest.raises(UserError, match=r"cat/b\[1\]\.HEIC: HEIC cannot be read; .* or remove it"):
        test_sets.read_class_folders(tmp_path, ["cat"])
    (tmp_path / "cat/b[1].jpg").write_bytes(encoded(picture(2), "JPEG"))
    images, _ = test_sets.read_class_folders(tmp_path, ["cat"])
    assert [Path(key).name for key in images.keys] == ["a.jpg", "b[1].jpg"]


def test_a_pillow_image_of_any_format_is_what_its_file_is() -> None:
    for data in files().values():
        assert torch.equal(module.pixels_of(Image.open(io.BytesIO(data))), decode(data))
