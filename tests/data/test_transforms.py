"""Images are resized as Pillow does and cropped as open_clip does; draws alone decide the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from samples import picture
from torch import Tensor

from clipx.data.decode import pixels_of
from clipx.data.order import uniforms
from clipx.data.transforms import (
    MEAN,
    NUM_DRAWS,
    STD,
    Augmentation,
    augment,
    center,
    normalize,
    resize,
)

SIDES = st.integers(1, 90)
KEEP_ALL = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0))


def noise(width: int, height: int, low: int = 0, high: int = 256) -> Image.Image:
    """The hardest case: every pixel is an edge."""
    generator = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(generator.integers(low, high, (height, width, 3)).astype(np.uint8))


def levels_apart(a: Tensor, b: Tensor) -> int:
    assert a.shape == b.shape
    return int((a.int() - b.int()).abs().max())


@settings(max_examples=80, deadline=None)
@given(width=SIDES, height=SIDES, to_width=st.integers(2, 90), to_height=st.integers(2, 90))
def test_resize_is_pillows_bicubic_along_rows_then_columns(
    width: int, height: int, to_width: int, to_height: int
) -> None:
    """Each pass rounds to whole levels, from weights of other precision: one level apart. Where a
    side grows, the second pass weighs the first's level by up to 1.25 in sum, which makes it two.
    """
    image = noise(width, height)
    rows = image.resize((to_width, height), Image.Resampling.BICUBIC)
    expected = pixels_of(rows.resize((to_width, to_height), Image.Resampling.BICUBIC))
    tolerance = 1 if to_width <= width and to_height <= height else 2
    assert levels_apart(resize(pixels_of(image), (to_height, to_width)), expected) <= tolerance


@settings(max_examples=60, deadline=None)
@given(width=st.integers(8, 120), height=st.integers(8, 120), size=st.integers(4, 140))
def test_center_is_open_clips_evaluation(width: int, height: int, size: int) -> None:
    """Two levels apart, as Pillow may begin with the columns. A contrast of half the range, so that
    no overshoot is clipped between the passes."""
    image = noise(width, height, 64, 192)
    theirs = image_transform(size, is_train=False, mean=MEAN, std=STD, resize_mode="shortest")
    ours = normalize(center(pixels_of(image), size)[None])[0]
    assert ours.shape == (3, size, size)
    apart = (ours - theirs(image)).abs().amax((1, 2))
    assert (apart * 255 * torch.tensor(STD)).max() < 2.01  # 0.01 for float32


def test_normalize_is_exact_where_nothing_is_resized() -> None:
    image = picture(0, (32, 32))
    theirs = image_transform(32, is_train=False, mean=MEAN, std=STD)(image)
    # float32: values reach 2.7 and are computed in three operations of relative error 6e-8
    torch.testing.assert_close(normalize(pixels_of(image)[None])[0], theirs, rtol=0, atol=1e-6)


def test_a_crop_that_keeps_all_of_a_square_is_the_identity() -> None:
    image = pixels_of(noise(24, 24))
    assert torch.equal(augment(image, 24, KEEP_ALL, uniforms(0, 0, NUM_DRAWS)), image)
    assert torch.equal(center(image, 24), image)


@pytest.mark.parametrize(
    ("flip", "draw", "flipped"), [(0.0, 0.0, 0), (0.5, 0.49, 1), (0.5, 0.5, 0)]
)
def test_the_last_draw_decides_the_flip(flip: float, draw: float, flipped: int) -> None:
    image = pixels_of(noise(24, 24))
    augmentation = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=flip)
    out = augment(image, 24, augmentation, np.array([0.5, 0.5, 0.5, 0.5, draw]))
    assert torch.equal(out, image.flip(-1) if flipped else image)


@pytest.mark.parametrize(
    ("left", "top", "expected"),
    [(0.0, 0.0, (0, 0)), (0.999, 0.0, (12, 0)), (0.0, 0.999, (0, 12)), (0.5, 0.5, (6, 6))],
)
def test_draws_place_the_crop(left: float, top: float, expected: tuple[int, int]) -> None:
    image = pixels_of(noise(24, 24))
    quarter = Augmentation(scale=(0.25, 0.25), ratio=(1.0, 1.0))  # 12 x 12, so 13 places each way
    out = augment(image, 12, quarter, np.array([0.5, 0.5, left, top, 0.5]))
    x, y = expected
    assert torch.equal(out, image[:, y : y + 12, x : x + 12])


def test_draws_of_area_and_ratio_are_those_of_the_crop() -> None:
    # x and y ramps: the range of levels tells the width and height of the crop.
    x, y = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="xy")
    image = torch.stack([x, y, x]).to(torch.uint8)
    wide = Augmentation(scale=(0.04, 0.16), ratio=(0.5, 2.0))

    def extent(area: float, ratio: float) -> tuple[int, int]:
        out = augment(image, 400, wide, np.array([area, ratio, 0.5, 0.5, 0.5])).int()
        return tuple(int(c.max() - c.min()) + 1 for c in out[:2])  # type: ignore[return-value]

    # sqrt(0.04) of 200 is 40, sqrt(0.16) is 80, sqrt(2) of 40 is 57, and of 1/40 is 28
    assert extent(0.0, 0.5) == (40, 40)
    assert extent(1.0, 0.5) == (80, 80)
    assert extent(0.0, 0.0) == (28, 57)
    assert extent(0.0, 1.0) == (57, 28)


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, seed=st.integers(0, 1000))
def test_augment_gives_the_size_for_any_image_and_draws(width: int, height: int, seed: int) -> None:
    image = pixels_of(noise(width, height))
    draws = uniforms(seed, 1, NUM_DRAWS)
    strong = Augmentation(scale=(0.08, 1.0), ratio=(0.1, 10.0), flip=0.5)
    out = augment(image, 16, strong, draws)
    assert out.shape == (3, 16, 16)
    assert out.dtype == torch.uint8
    assert torch.equal(out, augment(image, 16, strong, draws))
