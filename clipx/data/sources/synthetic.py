"""Pictures of one colored shape with a caption that describes it: known answers for benchmarks,
tests and first steps. Nothing is stored: a sample is a function of the seed and its number."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import Field

from clipx.config import config
from clipx.data.decode import MAX_BYTES
from clipx.data.sample import BadSample, Raw
from clipx.types import UserError

Rgb = tuple[int, int, int]

VERSION = 1  # to be raised with any change of pictures or captions, which makes another corpus
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
SHADE = 10  # levels by which channels vary; too few to make another of COLORS the nearest


@config
class Config:
    """Pictures of one shape each, such as "a small red circle at the top left on a gray
    background"."""

    samples: int = Field(default=10_000, ge=1)
    """Number of samples."""
    size: int = Field(default=64, ge=24, le=4096)
    """Width and height in pixels."""
    seed: int = 0
    """Of the pictures and captions."""
    shards: int = Field(default=8, ge=1)
    """Parts of nearly equal size."""

    def build(self) -> Synthetic:
        return Synthetic(self.samples, size=self.size, seed=self.seed, shards=self.shards)


@dataclass(frozen=True)
class Scene:
    """The content of a picture. center_x, center_y, radius: pixels; rgb, ground: 0 to 255"""

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

    Pixels are the same on all machines; the bytes of the PNG may differ with the version of Pillow.
    """

    is_remote = False
    fields = frozenset({"txt", "color", "shape", "size", "place", "background"})
    faults: Sequence[BadSample] = ()

    def __init__(self, samples: int, *, size: int, seed: int, shards: int) -> None:
        """Raises UserError for fewer samples than shards."""
        if shards > samples:
            raise UserError(f"{samples} synthetic samples do not fill {shards} shards; set fewer")
        self.size = size
        self.seed = seed
        smaller, num_larger = divmod(samples, shards)
        self.sizes = smaller + (np.arange(shards) < num_larger).astype(np.int64)
        self._starts = np.cumsum(self.sizes) - self.sizes

    @property
    def digests(self) -> Sequence[str]:
        digests = []
        for start, count in zip(self._starts.tolist(), self.sizes.tolist(), strict=True):
            settings = f"{VERSION} {self.seed} {self.size} {start} {count}"
            digests.append(hashlib.sha1(settings.encode()).hexdigest())
        return digests

    def name(self, shard: int) -> str:
        return f"synthetic-{self.seed}#{shard}"

    def key(self, shard: int, sample: int) -> str:
        return f"{self._number(shard, sample):08d}"

    def read(self, shard: int, sample: int, *, max_image_bytes: int = MAX_BYTES) -> Raw:
        del max_image_bytes  # pictures are small
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
        """Nothing has to be fetched."""

    def _number(self, shard: int, sample: int) -> int:
        assert 0 <= sample < self.sizes[shard]
        return int(self._starts[shard]) + sample


def draw(seed: int, number: int, size: int) -> Scene:
    """The scene of a sample, from integers only, so that it is the same on all machines."""
    digest = hashlib.sha512(f"{VERSION} {seed} {number}".encode()).digest()
    draws = [int.from_bytes(digest[i : i + 4], "big") for i in range(0, 56, 4)]
    shape = SHAPES[draws[0] % len(SHAPES)]
    color = list(COLORS)[draws[1] % len(COLORS)]
    background = list(BACKGROUNDS)[draws[2] % len(BACKGROUNDS)]
    extent = list(SIZES)[draws[3] % len(SIZES)]
    is_right = (draws[4] >> 8) % 2 == 1
    is_bottom = (draws[5] >> 8) % 2 == 1
    low, high = SIZES[extent]
    radius = max(3, size * (low + draws[6] % (high - low + 1)) // 1000)
    return Scene(
        shape=shape,
        color=color,
        background=background,
        extent=extent,
        place=f"{'bottom' if is_bottom else 'top'} {'right' if is_right else 'left'}",
        rgb=_shaded(COLORS[color], draws[9:12]),
        ground=_shaded(BACKGROUNDS[background], draws[12:13] * 3),  # all channels alike: gray
        center_x=_center(is_right, draws[7], radius, size),
        center_y=_center(is_bottom, draws[8], radius, size),
        radius=radius,
    )


def _shaded(color: Rgb, draws: list[int]) -> Rgb:
    shades = [draw % (2 * SHADE + 1) - SHADE for draw in draws]
    return color[0] + shades[0], color[1] + shades[1], color[2] + shades[2]


def _center(is_high: bool, draw: int, radius: int, size: int) -> int:
    """A pixel between an edge of the picture and its middle, at least a radius from the edge."""
    low = radius + 1
    center = low + draw % max(1, size * 2 // 5 - low)
    return size - 1 - center if is_high else center


def paint(scene: Scene, size: int) -> np.ndarray:
    """(size, size) bool: True inside the shape."""
    r = scene.radius
    x = np.arange(-r, r + 1)[None, :]
    y = np.arange(-r, r + 1)[:, None]
    if scene.shape == "circle":
        inside = x * x + y * y <= r * r
    elif scene.shape == "square":
        inside = (abs(x) <= r) & (abs(y) <= r)
    elif scene.shape == "triangle":
        inside = 2 * abs(x) <= y + r  # with its point at the top
    elif scene.shape == "diamond":
        inside = abs(x) + abs(y) <= r
    else:
        assert scene.shape == "cross"
        inside = (3 * abs(x) <= r) | (3 * abs(y) <= r)
    picture = np.zeros((size, size), dtype=bool)
    top = scene.center_y - r
    left = scene.center_x - r
    picture[top : top + 2 * r + 1, left : left + 2 * r + 1] = inside
    return picture


def two_color_png(picture: np.ndarray, colors: tuple[Rgb, Rgb]) -> bytes:
    """A PNG with the first color where the (H, W) picture is False, else the second."""
    height, width = picture.shape
    image = Image.frombytes("P", (width, height), picture.tobytes())
    image.putpalette([*colors[0], *colors[1]])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # each picture is compressed anew for each epoch
    return buffer.getvalue()
