"""EXIF orientation: how the stored pixels of a picture are turned before a person sees them."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

HEAD_BYTES = 1 << 16  # of a JPEG, in which cameras write EXIF: one segment has at most so many
_TAG = ExifTags.Base.Orientation
_START = b"Exif\0\0"
_APP1 = b"\xff\xe1"  # the marker of the segment; two bytes of its length follow

# Changes of stored rows and columns: whether they are exchanged, then which are reversed.
_ROWS, _COLUMNS = 0, 1
_TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    1: (False, ()),
    2: (False, (_COLUMNS,)),
    3: (False, (_ROWS, _COLUMNS)),
    4: (False, (_ROWS,)),
    5: (True, ()),
    6: (True, (_COLUMNS,)),  # by 90 degrees clockwise
    7: (True, (_ROWS, _COLUMNS)),
    8: (True, (_ROWS,)),
}
_INVERSE = {6: 8, 8: 6}  # each of the others undoes itself

# Pillow's exceptions for damaged EXIF. A picture whose tag cannot be read is shown as stored.
_ERRORS = (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error)


def jpeg_orientation(data: bytes) -> int:
    """1 to 8, of the bytes of a JPEG; 1 without a valid tag.

    The search costs microseconds. Pillow is called only for a file that has EXIF.
    """
    place = data.find(_START, 0, HEAD_BYTES)
    if place < 0 or data[place - 4 : place - 2] != _APP1:
        return 1
    return _tag_of(data[place : place + HEAD_BYTES])


def orientation_of(image: Image.Image) -> int:
    """1 to 8, of a Pillow image whose pixels are loaded: a PNG may have EXIF after them.

    Pixels of a TIFF are turned by Pillow itself, so that its orientation is 1.
    """
    content = image.info.get("exif")
    return _tag_of(content) if isinstance(content, bytes) else 1


def turn_by_pillow(image: Image.Image) -> int:
    """1 to 8: how Pillow will turn the pixels when it loads them, which it does for TIFF alone.
    Called before they are loaded."""
    return _tag_in(image.getexif) if isinstance(image, TiffImageFile) else 1


def inverse(orientation: int) -> int:
    return _INVERSE.get(orientation, orientation)


def swaps_sides(orientation: int) -> bool:
    """Whether the width that is shown is the stored height."""
    return _TURNS[orientation][0]


def turned(pixels: Tensor, orientation: int) -> Tensor:
    """(3, H, W) uint8 in memory (H, W, 4) -> the same layout, turned; 1 returns `pixels`."""
    if orientation == 1:
        return pixels
    is_swapped, reversed_axes = _TURNS[orientation]
    _, height, width = pixels.shape
    # As words of 32 bits: a pixel, with its unused byte, moves at once. NumPy's views of reversed
    # rows need one copy in all, torch's `flip` would make another.
    memory = pixels.as_strided((height, width, 4), (width * 4, 4, 1))
    words = memory.numpy().view(np.int32)[..., 0]
    if is_swapped:
        words = words.T
    for axis in reversed_axes:
        words = np.flip(words, axis)
    memory = np.ascontiguousarray(words)[..., None].view(np.uint8)
    return torch.from_numpy(memory)[..., :3].permute(2, 0, 1)


def _tag_of(content: bytes) -> int:
    """content: of the EXIF segment, with its `Exif` at the start or without"""

    def parse() -> Image.Exif:
        exif = Image.Exif()
        exif.load(content)
        return exif

    return _tag_in(parse)


def _tag_in(read: Callable[[], Image.Exif]) -> int:
    """The orientation in the EXIF that `read` returns; 1 if it is damaged or has no valid tag."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF
        try:
            value = read().get(_TAG)
        except _ERRORS:
            return 1
    return value if isinstance(value, int) and value in _TURNS else 1
