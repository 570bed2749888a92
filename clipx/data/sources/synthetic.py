"""Colored shapes whose captions say what is to be seen: known answers for benchmarks, tests and
first steps. Nothing is stored: each sample is a function of (seed, its number)."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from clipx.config import config
from clipx.data.decode import MAX_BYTES
from clipx.data.sample import BadSample, Raw
from clipx.types import UserError

Rgb = tuple[int, int, int]

VERSION = 1  # of what is drawn and said: another one is another corpus
COLORS = {
    "red": (214, 44, 44),
    "green": (40, 150, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 225, 50),
    "orange": (240, 140, 30),
    "purple": (130, 40, 160),
    "pink": (240, 130, 200),
    "cyan": (60, 200, 220),
}
BACKGROUNDS = {"white": (244, 244, 244), "gray": (128, 128, 128), "black": (12, 12, 12)}
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
SIZES = {"small": (90, 140), "large": (200, 280)}  # radius in thousandths of the picture's side
_WIDE, _HIGH = ("left", "right"), ("top", "bottom")
_SHADE = 10  # a color varies by so many levels per channel; the nearest of COLORS stays the same


@config
class Config:
    """Pictures of one shape each, such as "a small red circle at the top left on a gray
    background"."""

    samples: int = Field(default=10_000, ge=1)
    """How many samples."""
    size: int = Field(default=64, ge=24, le=4096)
    """Width and height in pixels."""
    seed: int = 0
    """Another seed, other pictures."""
    shards: int = Field(default=8, ge=1)
    """Parts of nearly equal size."""

    def build(self) -> Synthetic:
        return Synthetic(self.samples, size=self.size, seed=self.seed, shards=self.shards)


@dataclass(frozen=True)
class Scene:
    """What a picture shows. center_x, center_y, radius: pixels; rgb, ground: 0 to 255"""

    shape: str
    color: str
    background: str
    extent: str
    place: str
    rgb: Rgb
    ground: Rgb
    center_x: int
    center_y: int
    radius: int

    @property
    def caption(self) -> str:
        return (
            f"a {self.extent} {self.color} {self.shape} at the {self.place} "
            f"on a {self.background} background"
        )


class Synthetic:
    """See `clipx.data.sample.Source`. Text fields: txt, color, shape, size, place, background.

    Pixels are the same on every machine; the PNG's bytes may differ with the version of zlib.
    """

    is_remote = False
    fields = frozenset({"txt", "color", "shape", "size", "place", "background"})
    faults: Sequence[BadSample] = ()

    def __init__(self, samples: int, *, size: int, seed: int, shards: int) -> None:
        """Raises UserError where there are fewer samples than shards."""
        if shards > samples:
            raise UserError(f"{samples} synthetic samples do not fill {shards} shards; set fewer")
        self.size, self.seed = size, seed
        each, more = divmod(samples, shards)
        self.sizes = each + (np.arange(shards) < more).astype(np.int64)
        self._starts = np.cumsum(self.sizes) - self.sizes

    @property
    def digests(self) -> Sequence[str]:
        spans = zip(self._starts.tolist(), self.sizes.tolist(), strict=True)
        return [
            hashlib.sha1(f"{VERSION} {self.seed} {self.size} {first} {count}".encode()).hexdigest()
            for first, count in spans
        ]

    def name(self, shard: int) -> str:
        return f"synthetic-{self.seed}#{shard}"

    def key(self, shard: int, sample: int) -> str:
        return f"{self._number(shard, sample):08d}"

    def read(self, shard: int, sample: int, *, max_image_bytes: int = MAX_BYTES) -> Raw:
        del max_image_bytes  # drawn here, and small
        scene = draw(self.seed, self._number(shard, sample), self.size)
        image = two_color_png(paint(scene, self.size), (scene.ground, scene.rgb))
        text = {
            "txt": scene.caption,
            "color": scene.color,
            "shape": scene.shape,
            "size": scene.extent,
            "place": scene.place,
            "background": scene.background,
        }
        return Raw(self.key(shard, sample), image, text)

    def prefetch(self, shards: Sequence[int]) -> None:
        """There is nothing to fetch."""

    def _number(self, shard: int, sample: int) -> int:
        assert 0 <= sample < self.sizes[shard]
        return int(self._starts[shard]) + sample


def draw(seed: int, number: int, size: int) -> Scene:
    """The scene of a number: integers from a hash, so that all machines see the same."""
    words = hashlib.sha512(f"{VERSION} {seed} {number}".encode()).digest()
    draws = [int.from_bytes(words[i : i + 4], "big") for i in range(0, 56, 4)]
    shape = SHAPES[draws[0] % len(SHAPES)]
    color = list(COLORS)[draws[1] % len(COLORS)]
    background = list(BACKGROUNDS)[draws[2] % len(BACKGROUNDS)]
    extent = list(SIZES)[draws[3] % len(SIZES)]
    horizontal, vertical = (draws[4] >> 8) % 2, (draws[5] >> 8) % 2
    low, high = SIZES[extent]
    radius = max(3, size * (low + draws[6] % (high - low + 1)) // 1000)
    return Scene(
        shape,
        color,
        background,
        extent,
        f"{_HIGH[vertical]} {_WIDE[horizontal]}",
        _shaded(COLORS[color], draws[9:12]),
        _shaded(BACKGROUNDS[background], draws[12:13] * 3),
        _center(horizontal, draws[7], radius, size),
        _center(vertical, draws[8], radius, size),
        radius,
    )


def _shaded(color: Rgb, draws: list[int]) -> Rgb:
    red, green, blue = (
        level + draw % (2 * _SHADE + 1) - _SHADE for level, draw in zip(color, draws, strict=True)
    )
    return red, green, blue


def _center(side: int, draw: int, radius: int, size: int) -> int:
    """Pixel between the picture's edge and its middle, with room for the radius. side: 0 low, 1
    high"""
    low = radius + 1
    center = low + draw % max(1, size * 2 // 5 - low)
    return size - 1 - center if side else center


def paint(scene: Scene, size: int) -> np.ndarray:
    """(size, size) bool: True where the shape is."""
    picture = np.zeros((size, size), dtype=bool)
    r = scene.radius
    offset = np.arange(-r, r + 1)
    top, left = scene.center_y - r, scene.center_x - r
    box = picture[top : top + 2 * r + 1, left : left + 2 * r + 1]
    box[:] = mask(scene.shape, offset[None, :], offset[:, None], r)
    return picture


def mask(shape: str, x: np.ndarray, y: np.ndarray, r: int) -> np.ndarray:
    """(2r + 1, 2r + 1) bool: the pixels of a shape that fills its box. x: (1, 2r + 1), y: (2r + 1,
    1) from -r to r"""
    if shape == "circle":
        return x * x + y * y <= r * r
    if shape == "square":
        return (abs(x) <= r) & (abs(y) <= r)
    if shape == "triangle":
        return 2 * abs(x) <= y + r  # the point is at the top
    if shape == "diamond":
        return abs(x) + abs(y) <= r
    assert shape == "cross"
    return (3 * abs(x) <= r) | (3 * abs(y) <= r)


def two_color_png(picture: np.ndarray, colors: tuple[Rgb, Rgb]) -> bytes:
    """Where the (H, W) picture is False, the first color. Written here, as Pillow takes five times
    as long for so little."""
    height, width = picture.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # each begins with its filter: none
    rows[:, 1:] = picture
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),  # 8 bits into a palette
        b"PLTE": bytes([*colors[0], *colors[1]]),
        b"IDAT": zlib.compress(rows.tobytes(), 1),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
