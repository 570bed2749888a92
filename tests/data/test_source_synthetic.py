"""The captions of synthetic pictures describe their pixels."""

from __future__ import annotations

import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from clipx.config import build
from clipx.data.sources import synthetic
from clipx.data.sources.synthetic import BACKGROUNDS, COLORS, SHAPES, Synthetic
from clipx.types import UserError

CAPTION = re.compile(r"a (\w+) (\w+) (\w+) at the (\w+ \w+) on a (\w+) background")


def pixels(data: bytes) -> np.ndarray:
    """(H, W, 3) int"""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def nearest(color: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str:
    return min(names, key=lambda name: float(np.abs(color - np.array(names[name])).sum()))


def seen(picture: np.ndarray) -> tuple[str, str, str, str, str]:
    """(size, color, shape, place, background) by looking: the background is in the corner, and
    the shape follows from the edge of its bounding box, its symmetry and its area."""
    side = len(picture)
    ground = picture[0, 0]
    inside = (picture != ground).any(-1)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert len(set(map(tuple, picture[inside]))) == 1
    assert box.shape[0] == box.shape[1]
    n = len(box)
    if box[0, 0]:
        shape = "square"
    elif not (box == box[::-1]).all():
        shape = "triangle"
    elif box[0].sum() > 1:
        shape = "cross"
    else:
        shape = "circle" if box.mean() > 0.55 else "diamond"
    color = nearest(picture[inside][0], COLORS)
    high = "top" if rows.mean() < side / 2 else "bottom"
    left = "left" if columns.mean() < side / 2 else "right"
    size = "large" if n > 0.34 * side + 1 else "small"
    return size, color, shape, f"{high} {left}", nearest(ground, BACKGROUNDS)


@pytest.mark.parametrize(("size", "samples"), [(64, 600), (100, 100), (257, 50)])
def test_the_caption_describes_the_picture(size: int, samples: int) -> None:
    source = Synthetic(samples, size=size, seed=3, shards=1)
    for number in range(samples):
        raw = source.read(0, number)
        picture = pixels(raw.image)
        assert picture.shape == (size, size, 3)
        caption = CAPTION.fullmatch(raw.text["txt"])
        assert caption is not None
        assert caption.groups() == seen(picture), raw.key
        fields = ("size", "color", "shape", "place", "background")
        assert tuple(raw.text[name] for name in fields) == caption.groups()


def test_all_colors_and_shapes_come_equally_often() -> None:
    source = Synthetic(2000, size=24, seed=0, shards=1)
    texts = [source.read(0, number).text for number in range(2000)]
    values = {"color": COLORS, "shape": SHAPES, "background": BACKGROUNDS, "size": 2, "place": 4}
    for name, kinds in values.items():
        counts = Counter(text[name] for text in texts)
        num = kinds if isinstance(kinds, int) else len(kinds)
        assert len(counts) == num
        expected = 2000 / num
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values()), counts
    assert len({text["txt"] for text in texts}) > 700  # of 960


def test_samples_are_the_same_whatever_their_number_and_shards() -> None:
    one = Synthetic(10, size=24, seed=0, shards=1)
    three = Synthetic(10, size=24, seed=0, shards=3)
    assert three.sizes.tolist() == [4, 3, 3]
    rows = [(s, n) for s, size in enumerate(three.sizes) for n in range(size)]
    assert [three.read(*row) for row in rows] == [one.read(0, n) for n in range(10)]
    assert [three.key(*row) for row in rows] == [f"{n:08d}" for n in range(10)]
    other = Synthetic(10, size=24, seed=1, shards=1)
    assert sum(other.read(0, n).text == one.read(0, n).text for n in range(10)) < 3


def test_digests_are_those_of_the_settings() -> None:
    base = {"samples": 10, "size": 24, "seed": 0, "shards": 2}
    digests = [
        tuple(build(synthetic.Config, base | change, where="a test").build().digests)
        for change in ({}, {"samples": 11}, {"size": 25}, {"seed": 1}, {"shards": 3})
    ]
    assert len(set(digests)) == 5


def test_more_shards_than_samples_are_refused() -> None:
    with pytest.raises(UserError, match="3 synthetic samples do not fill 4 shards"):
        synthetic.Config(samples=3, shards=4).build()


def test_pictures_are_the_same_on_every_machine() -> None:
    """Sums of the pixels of the first five, as they once were."""
    sums = [104559, 171249, 766019, 727005, 366138]
    source = Synthetic(5, size=32, seed=0, shards=1)
    assert [int(pixels(source.read(0, n).image).sum()) for n in range(5)] == sums
