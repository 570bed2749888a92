"""RandAugment, blur, erasing and training without crops: functions of the draws alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import batch, batches, is_row_of, same
from samples import picture
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from clipx.config import build
from clipx.data.augment import NUM_DRAWS, Augmentation, FurtherDraws, augment, shrink_of
from clipx.data.config import DataConfig
from clipx.data.decode import pixels_of
from clipx.data.loader import load
from clipx.data.order import uniforms
from clipx.data.preprocessing import MEAN, Preprocessing, center
from clipx.data.rand_augment import OPERATIONS, rand_augment
from clipx.objectives.views import ViewsConfig
from clipx.types import UserError

SIZE = 32
WHOLE = Augmentation(crop=False)
NO_STRENGTH = ("identity", "auto_contrast", "equalize")
ALL = Augmentation(
    scale=(0.3, 1.0),
    flip=0.5,
    rand_augment=2,
    rand_augment_magnitude=9.0,
    blur_prob=0.5,
    erase_prob=0.5,
)


def image(seed: int = 1, width: int = SIZE, height: int = SIZE) -> Tensor:
    """Levels 40 to 190, so that contrast and brightness have room."""
    pixels = pixels_of(picture(seed, (width, height)))
    return (40 + pixels.float() * (150 / 255)).round().to(torch.uint8)


def views(
    augmentation: Augmentation, pixels: Tensor, count: int = 60, **others: Any
) -> list[Tensor]:
    """At the first positions of a run."""
    draws = [uniforms(0, position, NUM_DRAWS) for position in range(count)]
    return [augment(pixels, SIZE, augmentation, row, **others) for row in draws]


def mean_apart(a: Tensor, b: Tensor) -> Tensor:
    return (a.int() - b.int()).abs().float().mean()


# --- RandAugment ---


def test_the_fourteen_operations_are_those_of_the_paper() -> None:
    assert len(OPERATIONS) == 14
    assert set(OPERATIONS) >= {"identity", "auto_contrast", "solarize", "shear_x", "translate_y"}


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in NO_STRENGTH])
@pytest.mark.parametrize("sign", [1, -1])
def test_each_operation_changes_the_picture_and_nothing_at_a_strength_of_0(
    name: str, sign: int
) -> None:
    """White pixels too, which torchvision's solarize inverts at its weakest."""
    pixels = image()
    pixels[:, :4] = 255
    operation = OPERATIONS[name]
    assert torch.equal(operation(pixels, sign * 0.0), pixels)
    apart = []
    for strength in (0.25, 1.0):
        out = operation(pixels, sign * strength)
        assert (out.shape, out.dtype) == (pixels.shape, torch.uint8)
        apart.append(mean_apart(out, pixels).item())
    assert 0 < apart[0] < apart[1]


@pytest.mark.parametrize("name", ["auto_contrast", "equalize"])
def test_operations_without_a_strength_stretch_the_levels(name: str) -> None:
    pixels = image()
    out = OPERATIONS[name](pixels, 0.1)
    assert torch.equal(out, OPERATIONS[name](pixels, -1.0))
    assert out.amin() == 0
    assert out.amax() >= 254  # torchvision rounds down


def test_the_strongest_are_those_of_autoaugment() -> None:
    pixels = image()
    fill = [round(255 * mean) for mean in MEAN]
    assert torch.equal(OPERATIONS["posterize"](pixels, 1.0), pixels & 0b11110000)
    assert torch.equal(OPERATIONS["solarize"](pixels, 1.0), 255 - pixels)
    half = torch.where(pixels >= 128, 255 - pixels, pixels)
    assert torch.equal(OPERATIONS["solarize"](pixels, -0.5), half)
    assert torch.equal(OPERATIONS["brightness"](pixels, -1.0), tv.adjust_brightness(pixels, 0.1))
    moved = OPERATIONS["translate_x"](pixels, 1.0)
    columns = round(SIZE * 150 / 331)
    assert torch.equal(moved[:, :, columns:], pixels[:, :, :-columns])
    assert moved[:, 0, 0].tolist() == fill
    up = OPERATIONS["translate_y"](pixels, -1.0)
    assert torch.equal(up[:, :-columns], pixels[:, columns:])
    turned = OPERATIONS["rotate"](pixels, 1.0)
    expected = tv.rotate(pixels, -30.0, tv.InterpolationMode.BILINEAR, fill=fill)
    assert (turned.int() - expected.int()).abs().max() <= 1
    # A row that lies d above the middle moves by 0.3 d columns.
    ramp = torch.arange(SIZE, dtype=torch.uint8).mul(4).expand(3, SIZE, SIZE)
    sheared = OPERATIONS["shear_x"](ramp, 1.0)[0, :, SIZE // 2].float()
    slope = (sheared[1:] - sheared[:-1]).mean() / 4
    assert abs(abs(slope) - 0.3) < 0.02


def test_a_draw_chooses_each_operation_and_its_sign() -> None:
    pixels = image()
    for number, name in enumerate(OPERATIONS):
        draw = (number + 0.5) / 14
        for sign, value in ((1, 0.4), (-1, 0.6)):
            out = rand_augment(pixels, 1, 9.0, np.array([draw, value]))
            assert torch.equal(out, OPERATIONS[name](pixels, sign * 0.9))
    draws = np.array([3.5 / 14, 0.0, 8.5 / 14, 0.9])
    after = OPERATIONS["brightness"](OPERATIONS["rotate"](pixels, 0.5), -0.5)
    assert torch.equal(rand_augment(pixels, 2, 5.0, draws), after)


def test_rand_augment_uses_all_operations_alike_over_the_positions() -> None:
    """2800 draws of 14 operations: 200 each, with a standard deviation of 13.6."""
    chosen = []
    for position in range(1400):
        further = FurtherDraws.of(uniforms(0, position, NUM_DRAWS), 2)
        chosen += [int(draw * 14) for draw in further.operations[::2]]
    counts = np.bincount(chosen, minlength=14)
    assert counts.min() > 130
    assert counts.max() < 270


@pytest.mark.parametrize("change", [{"rand_augment": 0}, {"rand_augment_magnitude": 0.0}])
def test_no_operations_or_a_magnitude_of_0_is_the_identity(change: dict[str, Any]) -> None:
    augmentation = replace(replace(WHOLE, rand_augment=3), **change)
    assert not augmentation.is_random
    assert all(torch.equal(view, image()) for view in views(augmentation, image(), 5))


# --- blur ---


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0, 40.0])
def test_blur_is_torchvisions_to_a_level(sigma: float) -> None:
    """Also where the kernel would be larger than the picture."""
    pixels = image()
    augmentation = replace(WHOLE, blur_prob=1.0, blur_sigma=(sigma, sigma))
    (out,) = views(augmentation, pixels, 1)
    side = 2 * min(math.ceil(3 * sigma), SIZE - 1) + 1
    expected = tv.gaussian_blur(pixels, [side, side], [sigma, sigma])
    assert (out.int() - expected.int()).abs().max() <= 1
    assert torch.equal(out, pixels) == (sigma == 0.1)


def test_blur_has_its_probability_and_its_range() -> None:
    pixels = image()
    augmentation = replace(WHOLE, blur_prob=0.3, blur_sigma=(0.5, 3.0))
    apart = torch.stack([mean_apart(view, pixels) for view in views(augmentation, pixels, 400)])
    # 400 draws of 0.3: 120 with a standard deviation of 9.2
    assert 80 < int((apart > 0).sum()) < 160
    weakest = mean_apart(tv.gaussian_blur(pixels, [19, 19], [0.5, 0.5]), pixels)
    strongest = mean_apart(tv.gaussian_blur(pixels, [19, 19], [3.0, 3.0]), pixels)
    assert apart[apart > 0].min() >= 0.9 * weakest
    assert apart.max() <= 1.1 * strongest


# --- erasing ---


def test_erasing_replaces_a_rectangle_by_noise() -> None:
    pixels = torch.full((3, SIZE, SIZE), 7, dtype=torch.uint8)
    shares = []
    for view in views(replace(WHOLE, erase_prob=1.0), pixels, 300):
        changed = (view != 7).any(0)
        rows = changed.any(1).nonzero().flatten()
        columns = changed.any(0).nonzero().flatten()
        box = view[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert int(changed.sum()) >= 0.95 * box[0].numel()  # noise is 7 in all channels by chance
        shares.append(box[0].numel() / SIZE**2)
        ratio = box.shape[2] / box.shape[1]
        assert 0.2 < ratio < 5
    assert 0.01 < min(shares) < 0.04
    assert 0.28 < max(shares) < 0.36
    assert abs(np.mean(shares) - (0.02 + 1 / 3) / 2) < 0.03
    assert box.float().std() > 60  # uniform levels have 74


def test_the_noise_of_two_positions_differs() -> None:
    """Not only in its place: 20 levels, from the first of the rectangle on."""
    black = torch.zeros((3, SIZE, SIZE), dtype=torch.uint8)
    erasing = replace(WHOLE, erase_prob=1.0)
    first, second = views(erasing, black, 2)
    assert first[first > 0][:20].tolist() != second[second > 0][:20].tolist()
    assert torch.equal(views(erasing, black, 1)[0], first)


# --- without crops ---


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_without_crops_the_picture_is_that_of_evaluation(mode: str) -> None:
    """Whatever the settings of the crop are; flipped, it is the mirror image."""
    fit = Preprocessing(resize_mode=mode, fill_color=9).fit
    pixels = image(2, 50, 30)
    expected = fit(pixels, SIZE)
    assert not WHOLE.is_random
    assert torch.equal(views(WHOLE, pixels, 1, fit=fit)[0], expected)
    flipped = 0
    for view in views(replace(WHOLE, flip=0.5), pixels, 60, fit=fit):
        is_flipped = not torch.equal(view, expected)
        flipped += is_flipped
        assert torch.equal(view, expected.flip(-1) if is_flipped else expected)
    assert 15 < flipped < 45
    gray = views(replace(WHOLE, gray_scale_prob=1.0), pixels, 1, fit=fit)[0]
    assert torch.equal(gray, tv.rgb_to_grayscale(expected, 3))


def test_a_whole_crop_with_a_flip_squeezes_a_wide_picture_and_no_crop_does_not() -> None:
    """docs/data.md explains it: scale and ratio of 1 are the whole picture of a square only."""
    pixels = image(2, 60, 30)
    crops = Augmentation(scale=(1, 1), ratio=(1, 1), flip=1.0)
    squeezed = views(crops, pixels, 1)[0]
    expected = center(pixels, SIZE).flip(-1)
    assert not torch.equal(squeezed, expected)
    assert torch.equal(views(replace(crops, crop=False), pixels, 1)[0], expected)


def test_without_crops_the_whole_picture_counts_for_scaled_decoding() -> None:
    quarter = Augmentation(scale=(0.25, 0.25), ratio=(1, 1), flip=0.5)
    draws = np.zeros(NUM_DRAWS)
    assert shrink_of(256, 256, 64, quarter, draws) == 2
    assert shrink_of(256, 256, 64, replace(quarter, crop=False), draws) == 4


# --- draws ---


def test_older_settings_keep_their_views() -> None:
    """Further draws take nothing from those that were there."""
    older = Augmentation(scale=(0.3, 1), flip=0.5, gray_scale_prob=0.5)
    pixels = image(3, 48, 40)
    for position in range(40):
        draws = uniforms(0, position, NUM_DRAWS)
        view = augment(pixels, SIZE, older, draws)
        longer = uniforms(0, position, 3 * NUM_DRAWS)
        assert torch.equal(augment(pixels, SIZE, older, longer), view)
        blurred = replace(older, blur_prob=1.0, blur_sigma=(0.01, 0.01))  # which changes no pixel
        assert torch.equal(augment(pixels, SIZE, blurred, draws), view)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    seed=st.integers(0, 1000),
    size=st.integers(1, 40),
    crop=st.booleans(),
)
def test_any_picture_and_draws_give_the_size_and_the_same_again(
    width: int, height: int, seed: int, size: int, crop: bool
) -> None:
    pixels = image(seed, width, height)
    draws = uniforms(seed, 1, NUM_DRAWS)
    strong = replace(ALL, crop=crop, blur_prob=1.0, erase_prob=1.0, rand_augment_magnitude=10.0)
    out = augment(pixels, size, strong, draws)
    assert (out.shape, out.dtype) == ((3, size, size), torch.uint8)
    assert torch.equal(out, augment(pixels, size, strong, draws.copy()))


@pytest.mark.parametrize(
    "change", [{"rand_augment": 2}, {"blur_prob": 0.5}, {"erase_prob": 0.5}, {"flip": 0.5}]
)
def test_is_random_tells_whether_draws_matter_without_crops(change: dict[str, Any]) -> None:
    augmentation = replace(WHOLE, **change)
    assert augmentation.is_random
    seen = {view.numpy().tobytes() for view in views(augmentation, image(), 40)}
    assert len(seen) > 1


SETTINGS: dict[str, Any] = {
    "crop_scale": (0.3, 1.0),
    "flip": 0.5,
    "rand_augment": 2,
    "blur_prob": 0.5,
    "erase_prob": 0.5,
}


def test_ranks_workers_and_resume_give_the_same_views(corpus: Path) -> None:
    whole = batches(corpus, **SETTINGS, pad_to=20)
    for k in (0, 3):
        expected = batch(whole, k)
        assert same(batch(batches(corpus, **SETTINGS, pad_to=20), k), expected)  # resumed there
        for rank in range(2):
            part = batch(batches(corpus, **SETTINGS, pad_to=20, rank=rank, world_size=2), k)
            for row in range(4):
                assert is_row_of(part, row, expected, 2 * row + rank)
    for workers in (0, 2):
        loader = batches(corpus, **SETTINGS, pad_to=20, workers=workers)
        for k, loaded in enumerate(load(loader, 0, 3)):
            assert same(loaded, batch(whole, k))


def test_the_settings_reach_the_augmentation() -> None:
    config = DataConfig(
        shards="x", **SETTINGS, rand_augment_magnitude=5, crop=False, blur_sigma=(1, 3)
    )
    augmentation = config.augmentation
    assert augmentation == Augmentation(
        scale=(0.3, 1.0),
        flip=0.5,
        rand_augment=2,
        rand_augment_magnitude=5,
        blur_prob=0.5,
        blur_sigma=(1, 3),
        erase_prob=0.5,
        crop=False,
    )
    assert DataConfig(shards="x").augmentation == Augmentation()
    views_config = ViewsConfig(crop_ratio=(1, 1), blur_prob=0.5, blur_sigma=(0.2, 1))
    assert views_config.augmentation == Augmentation(
        scale=(0.2, 1.0),
        ratio=(1, 1),
        flip=0.5,
        color_jitter=(0.4, 0.4, 0.4, 0.1),
        color_jitter_prob=0.8,
        gray_scale_prob=0.2,
        blur_prob=0.5,
        blur_sigma=(0.2, 1),
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"rand_augment": 15},
        {"rand_augment_magnitude": 10.5},
        {"rand_augment_magnitude": -1},
        {"blur_sigma": (0, 1)},
        {"erase_prob": 1.1},
    ],
)
def test_values_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        build(DataConfig, {"shards": "x", **setting}, where="data")
