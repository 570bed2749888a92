"""Image bytes -> (3, H, W) uint8 RGB.

Pillow is the reference. simplejpeg, where installed, decodes JPEG to the same pixels faster; files
that it refuses are left to Pillow, so that both installations use the same files. The number of
bytes and the size in the header are checked before any pixel is decoded, so that a small file
cannot claim all the memory. A picture is turned by its EXIF tag, as people see it; open_clip trains
on the pixels as stored.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from clipx.data.image_formats import HEIC_REMEDY, available_formats, is_heic
from clipx.data.orientation import (
    inverse,
    jpeg_orientation,
    orientation_of,
    swaps_sides,
    turn_by_pillow,
    turned,
)

Shrink = Callable[[int, int], int]
MAX_PIXELS = 178_956_970  # Pillow's own bound, above which other libraries refuse a picture
MAX_BYTES = 540_000_000  # a PNG of MAX_PIXELS that does not compress at all has 537 million
STRIP_PIXELS = 1 << 20  # converted at a time, so that a large picture is not copied as a whole
LARGE_TILE = 1 << 20  # pixels of a TIFF's tile that are no reason to refuse it

# Pillow's exceptions for damaged files. UnidentifiedImageError is an OSError.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    RuntimeError,  # of the AVIF decoder
    Image.DecompressionBombError,
)


class BadImage(ValueError):
    """Bytes that are no usable image; the message gives the reason."""


class TooLarge(BadImage):
    """An image above a bound. setting: the one to raise"""

    def __init__(self, size: str, setting: str, limit: int) -> None:
        super().__init__(f"{size} exceed {setting} {limit}")
        self.setting = setting

    def __reduce__(self) -> tuple[object, ...]:
        return BadImage, (str(self),)  # worker processes send only the message


def decode(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    shrink: Shrink | None = None,
    exif_orientation: bool = True,
) -> Tensor:
    """(3, H, W) uint8, in memory (H, W, 4), which `resize` takes as it is. Raises BadImage.

    shrink: (height, width) -> 1, 2, 4 or 8: a JPEG is decoded that many times smaller, from the low
        frequencies of its blocks of 8 x 8 pixels. Sides are those of the picture that is returned
    exif_orientation: turn the picture by its EXIF tag; otherwise pixels are as stored
    """
    if not data:
        raise BadImage("0 bytes")
    if len(data) > max_bytes:
        raise TooLarge(f"{len(data)} bytes", "max_image_bytes", max_bytes)
    if data[:3] != b"\xff\xd8\xff":
        return _decode_pillow(data, max_pixels, exif_orientation=exif_orientation)
    # Both decoders return stored pixels of a JPEG, so that they cannot differ in how they turn it.
    orientation = jpeg_orientation(data) if exif_orientation else 1
    if shrink is not None and swaps_sides(orientation):
        shrink = _with_swapped_sides(shrink)
    pixels = _decode_jpeg(data, max_pixels, shrink) if has_simplejpeg() else None
    if pixels is None:
        pixels = _decode_pillow(data, max_pixels, shrink, exif_orientation=False)
    return turned(pixels, orientation)


def _with_swapped_sides(shrink: Shrink) -> Shrink:
    return lambda height, width: shrink(width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as on a screen: transparency on white, 16-bit gray scaled to 8, the first frame of an
    animation or page of a document. Raises BadImage for pixels without a known range."""
    if image.mode.startswith("I;16") or image.mode == "I":
        scaled = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode == "F":
        raise BadImage("pixels are floats, whose black and white are unknown; store 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() == (255, 255):
            return rgba.convert("RGB")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def pixels_of(image: Image.Image, *, exif_orientation: bool = True) -> Tensor:
    """A Pillow image of any mode -> (3, H, W) uint8, in memory (H, W, 4).

    exif_orientation: turn it by the EXIF tag that it still has; `ImageOps.exif_transpose` removes
        the tag
    """
    by_pillow = 1 if exif_orientation else turn_by_pillow(image)
    image.load()
    width, height = image.size
    array = np.empty((height, width, 4), np.uint8)
    rows = max(1, STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        strip = image
        if rows < height:
            strip = image.crop((0, top, width, min(top + rows, height)))
        array[top : top + rows] = np.asarray(to_rgb(strip).convert("RGBX"))
    return turned(_planes(array), orientation_of(image) if exif_orientation else inverse(by_pillow))


def _planes(array: np.ndarray) -> Tensor:
    """(H, W, 4) -> (3, H, W), a view"""
    return torch.from_numpy(array)[..., :3].permute(2, 0, 1)


def _decode_pillow(
    data: bytes, max_pixels: int, shrink: Shrink | None = None, *, exif_orientation: bool
) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. of damaged metadata
            with _open_pillow(data) as image:
                _check_size(image.width, image.height, max_pixels)
                if isinstance(image, TiffImageFile):
                    _check_tiles(image, max_pixels)
                if shrink is not None and isinstance(image, JpegImageFile):
                    times = shrink(image.height, image.width)
                    if times > 1:  # Pillow divides the size by this one, and rounds down
                        image.draft(None, (image.width // times, image.height // times))
                return pixels_of(image, exif_orientation=exif_orientation)
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # its own message has a memory address in it
        if is_heic(data):
            raise BadImage(HEIC_REMEDY) from error
        formats = ", ".join(available_formats())
        raise BadImage(f"not readable as {formats}; starts with {data[:12]!r}") from error
    except _PILLOW_ERRORS as error:
        raise BadImage(f"{type(error).__name__}: {error}; starts with {data[:12]!r}") from error


def _open_pillow(data: bytes) -> Image.Image:
    """Image.open without Pillow's bound of 179 million pixels. Raises what Image.open raises.

    Only max_pixels shall decide, since an installation with simplejpeg does not have that bound and
    must use the same files.
    """
    for name in available_formats():
        factory, accepts = Image.OPEN[name]
        if accepts is not None and accepts(data[:16]) is not True:
            continue
        with suppress(SyntaxError, IndexError, TypeError, struct.error):
            return factory(io.BytesIO(data), "")
    raise UnidentifiedImageError


def _decode_jpeg(data: bytes, max_pixels: int, shrink: Shrink | None) -> Tensor | None:
    """None where simplejpeg cannot read the file."""
    import simplejpeg

    try:
        *size, space, _ = simplejpeg.decode_jpeg_header(data)
        height, width = map(int, size)
        _check_size(width, height, max_pixels)
        if space not in ("YCbCr", "Gray", "RGB"):  # it cannot convert CMYK and YCCK
            return None
        times = 1 if shrink is None else shrink(height, width)
        array = simplejpeg.decode_jpeg(
            data,
            "RGBX",
            fastdct=False,
            fastupsample=False,
            # It takes the smallest of its scales, n / 8, that gives at least this size.
            min_height=-(-height // times),
            min_width=-(-width // times),
        )
    except BadImage:
        raise
    except (ValueError, RuntimeError):
        return None
    return _planes(array)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(f"{width} x {height} pixels", "max_image_pixels", max_pixels)
    if min(width, height) < 1:
        raise BadImage(f"empty image of {width} x {height} pixels")


def _check_tiles(image: TiffImageFile, max_pixels: int) -> None:
    """Refuse a small picture that claims a huge tile, which libtiff would take memory for."""
    width = image.tag_v2.get(322, 0)
    height = image.tag_v2.get(323, 0)
    if width * height > max(max_pixels, LARGE_TILE):
        raise TooLarge(f"tiles of {width} x {height} pixels", "max_image_pixels", max_pixels)


@cache
def has_simplejpeg() -> bool:
    return find_spec("simplejpeg") is not None
