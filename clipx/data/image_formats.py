"""The formats of image files that are read, and how their files are called."""

from __future__ import annotations

from functools import cache

from PIL import Image, features

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
"""Of a sample with several images the first of these is used. A further format comes last, so that
a corpus keeps the images that it had."""

HEIC_EXTENSIONS = ("heic", "heif")
HEIC_REMEDY = (
    "HEIC cannot be read; convert the file to JPEG: `heif-convert a.heic a.jpg` (libheif), or "
    "`sips -s format jpeg a.heic --out a.jpg` on a Mac"
)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")


@cache
def available_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads: it may be built without WebP or AVIF."""
    Image.init()  # loads the formats at the first call
    optional = {"WEBP": "webp", "AVIF": "avif"}
    formats = []
    for name in FORMATS:
        if name in Image.OPEN and (name not in optional or features.check(optional[name])):
            formats.append(name)
    return tuple(formats)


def is_heic(data: bytes) -> bool:
    """By the brands of its first box, of the ISO base media file format (ISO/IEC 14496-12)."""
    if data[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[place : place + 4] for place in range(8, size, 4)]
    return any(brand in _HEIC_BRANDS for brand in brands)
