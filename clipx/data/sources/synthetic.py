"""Pictures of one colored shape with a caption that describes it: known answers for benchmarks,
tests and first steps. Nothing is stored: a sample is a function of the seed and its number."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydantic import Field

from clipx.config import config
from clipx.data.decode import MAX_BYTES
from clipx.data.sample import PAIRS_REMEDY, BadSample, Raw, SampleError
from clipx.types import UserError

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

    def identity(self, shard: int, sample: int) -> str:
        return self.key(shard, sample)

    def read(
        self,
        shard: int,
        sample: int,
        *,
        max_image_bytes: int = MAX_BYTES,
        images: Sequence[str] | None = None,
    ) -> Raw:
        del max_image_bytes  # pictures are small
        if images:
            raise SampleError("image", f"a synthetic sample has one image; {PAIRS_REMEDY}")
        image, text = _draw(self.seed, self._number(shard, sample), self.size)
        return Raw(self.key(shard, sample), image, text)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Nothing has to be fetched."""

    def _number(self, shard: int, sample: int) -> int:
        assert 0 <= sample < self.sizes[shard]
        return int(self._starts[shard]) + sample


def _draw(seed: int, number: int, size: int) -> tuple[bytes, dict[str, str]]:
    """The picture of a sample and its text fields, from integers, so that all machines agree."""
    digest = hashlib.sha512(f"{VERSION} {seed} {number}".encode()).digest()
    draws = np.frombuffer(digest, dtype=">u4").tolist()
    shape = SHAPES[draws[0] % len(SHAPES)]
    color = list(COLORS)[draws[1] % len(COLORS)]
    background = list(BACKGROUNDS)[draws[2] % len(BACKGROUNDS)]
    extent = list(SIZES)[draws[3] % len(SIZES)]
    is_right = (draws[4] >> 8) % 2 == 1
    is_bottom = (draws[5] >> 8) % 2 == 1
    place = f"{'bottom' if is_bottom else 'top'} {'right' if is_right else 'left'}"

    low, high = SIZES[extent]
    radius = max(3, size * (low + draws[6] % (high - low + 1)) // 1000)
    top = _center(is_bottom, draws[8], radius, size) - radius
    left = _center(is_right, draws[7], radius, size) - radius
    picture = np.zeros((size, size), dtype=bool)  # True for ink
    picture[top : top + 2 * radius + 1, left : left + 2 * radius + 1] = _mask(shape, radius)

    # An image of two colors, in a palette.
    image = Image.frombytes("P", (size, size), picture.tobytes())
    ground = _shaded(BACKGROUNDS[background], draws[12:13] * 3)  # all channels alike: gray
    ink = _shaded(COLORS[color], draws[9:12])
    image.putpalette(ground + ink)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # drawn anew in each epoch, so speed counts
    return buffer.getvalue(), {
        "txt": f"a {extent} {color} {shape} at the {place} on a {background} background",
        "color": color,
        "shape": shape,
        "size": extent,
        "place": place,
        "background": background,
    }


def _shaded(color: tuple[int, int, int], draws: list[int]) -> list[int]:
    shaded = []
    for level, draw in zip(color, draws, strict=True):
        shaded.append(level + draw % (2 * SHADE + 1) - SHADE)
    return shaded


def _center(is_high: bool, draw: int, radius: int, size: int) -> int:
    """A pixel between an edge of the picture and its middle, at least a radius from the edge."""
    low = radius + 1
    center = low + draw % max(1, size * 2 // 5 - low)
    return size - 1 - center if is_high else center


def _mask(shape: str, r: int) -> np.ndarray:
    """(2r + 1, 2r + 1) bool: True inside the shape, which touches all sides."""
    x = np.arange(-r, r + 1)[None, :]
    y = np.arange(-r, r + 1)[:, None]
    if shape == "circle":
        return x * x + y * y <= r * r
    if shape == "square":
        return (abs(x) <= r) & (abs(y) <= r)
    if shape == "triangle":
        return 2 * abs(x) <= y + r  # with its point at the top
    if shape == "diamond":
        return abs(x) + abs(y) <= r
    assert shape == "cross"
    return (3 * abs(x) <= r) | (3 * abs(y) <= r)
