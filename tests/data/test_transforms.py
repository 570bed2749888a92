"""Images are resized as Pillow does and cropped as open_clip does; draws alone decide the rest."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from PIL import __version__ as PILLOW
from samples import picture
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from clipx.data.augment import NUM_DRAWS, Augmentation, augment, crop_box, shrink_of
from clipx.data.decode import pixels_of
from clipx.data.order import uniforms
from clipx.data.preprocessing import MEAN, STD, center, normalize
from clipx.data.resize import packed, resize

SIDES = st.integers(1, 90)
COLOR_DRAWS = ("jitter", "order", "brightness", "contrast", "saturation", "hue", "gray")
KEEP_ALL = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0))


def noise(width: int, height: int, low: int = 0, high: int = 256) -> Image.Image:
    """The hardest case: every pixel is an edge."""
    generator = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(generator.integers(low, high, (height, width, 3)).astype(np.uint8))


def drawn(*values: float, **others: float) -> np.ndarray:
    """Draws of area, ratio, left, top and flip; the others by name."""
    draws = np.full(NUM_DRAWS, 0.5)
    draws[: len(values)] = values
    for name, value in others.items():
        draws[COLOR_DRAWS.index(name) - len(COLOR_DRAWS)] = value
    return draws


def levels_apart(a: Tensor, b: Tensor) -> int:
    assert a.shape == b.shape
    return int((a.int() - b.int()).abs().max())


def by_pillow(image: Image.Image, width: int, height: int) -> Image.Image:
    """In Pillow 13's order, whatever is installed: rows first, unless the columns lose twice as
    many pixels."""
    columns_first = image.height - height > 2 * max(0, image.width - width)
    between = (image.width, height) if columns_first else (width, image.height)
    passed = image.resize(between, Image.Resampling.BICUBIC)
    return passed.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.skipif(int(PILLOW.split(".")[0]) < 13, reason="always rows first")
@settings(max_examples=100, deadline=None)
@given(width=SIDES, height=SIDES, to_width=SIDES, to_height=SIDES)
def test_the_order_of_the_passes_is_that_of_pillow_13(
    width: int, height: int, to_width: int, to_height: int
) -> None:
    image = noise(width, height)
    direct = image.resize((to_width, to_height), Image.Resampling.BICUBIC)
    assert direct == by_pillow(image, to_width, to_height)


def resized(image: Tensor, width: int, height: int) -> Tensor:
    out = torch.empty(3, height, width, dtype=torch.uint8)
    resize(packed(image), (height, width), out)
    return out


@settings(max_examples=100, deadline=None)
@given(width=SIDES, height=SIDES, to_width=SIDES, to_height=SIDES)
def test_resize_is_pillows_bit_by_bit(
    width: int, height: int, to_width: int, to_height: int
) -> None:
    pytest.importorskip("numba")
    image = noise(width, height)
    expected = pixels_of(by_pillow(image, to_width, to_height))
    assert torch.equal(resized(pixels_of(image), to_width, to_height), expected)


@pytest.mark.parametrize("size", [(300, 200), (90, 400), (50, 40), (64, 64), (64, 9), (640, 480)])
def test_resize_is_the_same_without_numba(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(*size)
    monkeypatch.setattr("clipx.data.resize._kernel", lambda: None)
    assert torch.equal(resized(pixels_of(image), 64, 64), pixels_of(by_pillow(image, 64, 64)))


def test_a_machine_that_cannot_store_the_compiled_kernel_compiles_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numba = pytest.importorskip("numba")
    compile_here = numba.njit

    def njit(*args: Any, **options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'rows': no locator available")
        return compile_here(*args, **options)

    monkeypatch.setattr("numba.njit", njit)
    spec = importlib.util.find_spec("clipx.data.resize_kernel")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("clipx.data.resize._kernel", lambda: module)
    image = noise(90, 70)
    assert torch.equal(resized(pixels_of(image), 64, 64), pixels_of(by_pillow(image, 64, 64)))


@pytest.mark.parametrize(
    "view",
    [
        lambda pixels: pixels,
        lambda pixels: pixels[:, 3:40, 5:50],
        lambda pixels: pixels.contiguous(),
        lambda pixels: pixels.flip(-1),
        lambda pixels: pixels.transpose(1, 2),
        lambda pixels: pixels[:, ::2, ::2],
    ],
)
def test_pixels_are_packed_whatever_their_layout(view: Any) -> None:
    pixels = view(pixels_of(noise(60, 50)))
    words = packed(pixels)
    channels = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)[..., :3]
    assert torch.equal(torch.from_numpy(channels).permute(2, 0, 1), pixels)


def test_packing_what_was_decoded_copies_nothing() -> None:
    pixels = pixels_of(noise(60, 50))
    assert packed(pixels[:, 3:, 5:]).ctypes.data == pixels.data_ptr() + 4 * (3 * 60 + 5)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(8, 120), height=st.integers(8, 120), size=st.integers(4, 140))
def test_center_is_open_clips_evaluation(width: int, height: int, size: int) -> None:
    """One level apart with Pillow 13. A contrast of half the range, so that no overshoot is clipped
    between the passes, in which Pillow 12 may differ by one more."""
    image = noise(width, height, 64, 192)
    reference = image_transform(size, is_train=False, mean=MEAN, std=STD, resize_mode="shortest")
    ours = normalize(center(pixels_of(image), size)[None])[0]
    assert ours.shape == (3, size, size)
    apart = (ours - reference(image)).abs().amax((1, 2))
    levels = 1.01 if int(PILLOW.split(".")[0]) >= 13 else 2.01  # 0.01 for float32
    assert (apart * 255 * torch.tensor(STD)).max() < levels


def test_normalize_is_exact_where_nothing_is_resized() -> None:
    image = picture(0, (32, 32))
    reference = image_transform(32, is_train=False, mean=MEAN, std=STD)(image)
    # float32: values reach 2.7 and are computed in three operations of relative error 6e-8
    torch.testing.assert_close(normalize(pixels_of(image)[None])[0], reference, rtol=0, atol=1e-6)


def test_a_crop_that_keeps_all_of_a_square_is_the_identity() -> None:
    image = pixels_of(noise(24, 24))
    assert torch.equal(augment(image, 24, KEEP_ALL, uniforms(0, 0, NUM_DRAWS)), image)
    assert torch.equal(center(image, 24), image)


@pytest.mark.parametrize(
    ("flip", "draw", "flipped"), [(0.0, 0.0, 0), (0.5, 0.49, 1), (0.5, 0.5, 0)]
)
def test_the_fifth_draw_decides_the_flip(flip: float, draw: float, flipped: int) -> None:
    image = pixels_of(noise(24, 24))
    augmentation = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=flip)
    out = augment(image, 24, augmentation, drawn(0.5, 0.5, 0.5, 0.5, draw))
    assert torch.equal(out, image.flip(-1) if flipped else image)


@pytest.mark.parametrize(
    ("left", "top", "expected"),
    [(0.0, 0.0, (0, 0)), (0.999, 0.0, (12, 0)), (0.0, 0.999, (0, 12)), (0.5, 0.5, (6, 6))],
)
def test_draws_place_the_crop(left: float, top: float, expected: tuple[int, int]) -> None:
    image = pixels_of(noise(24, 24))
    quarter = Augmentation(scale=(0.25, 0.25), ratio=(1.0, 1.0))  # 12 x 12, so 13 places each way
    out = augment(image, 12, quarter, drawn(0.5, 0.5, left, top))
    x, y = expected
    assert torch.equal(out, image[:, y : y + 12, x : x + 12])


def test_draws_of_area_and_ratio_are_those_of_the_crop() -> None:
    # x and y ramps: the range of levels tells the width and height of the crop.
    x, y = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="xy")
    image = torch.stack([x, y, x]).to(torch.uint8)
    wide = Augmentation(scale=(0.04, 0.16), ratio=(0.5, 2.0))

    def extent(area: float, ratio: float) -> tuple[int, int]:
        out = augment(image, 400, wide, drawn(area, ratio)).int()
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


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(20, 90),
    height=st.integers(20, 90),
    seed=st.integers(0, 1000),
    flip=st.sampled_from([0.0, 1.0]),
)
def test_a_random_crop_is_pillows_crop_and_resize(
    width: int, height: int, seed: int, flip: float
) -> None:
    """The box by its definition, in float64."""
    image, draws = noise(width, height), uniforms(seed, 1, NUM_DRAWS)
    strong = Augmentation(scale=(0.3, 0.9), ratio=(0.5, 2.0), flip=flip)
    area = width * height * (0.3 + 0.6 * draws[0])
    ratio = 0.5 * 4 ** draws[1]
    w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
    x, y = int(draws[2] * (width - w + 1)), int(draws[3] * (height - h + 1))
    crop = image.crop((x, y, x + w, y + h))
    if flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = pixels_of(by_pillow(crop, 24, 24))
    assert levels_apart(augment(pixels_of(image), 24, strong, draws), expected) <= 1


def test_crops_fill_the_ranges_that_are_configured() -> None:
    """2000 draws: area and ratio spread evenly (in the logarithm) over their ranges, places over
    the whole image. A mean of 2000 uniform draws has a standard deviation of 0.0065."""
    wide = Augmentation(scale=(0.2, 0.4), ratio=(0.5, 2.0))
    draws = uniforms(0, np.arange(2000)[:, None], NUM_DRAWS)
    boxes = np.array([crop_box(1000, 1000, wide, row) for row in draws])
    left, top, width, height = boxes.T
    area = (width * height / 1e6 - 0.2) / 0.2
    ratio = np.log2(width / height) / 2 + 0.5
    places = [left / (1000 - width), top / (1000 - height)]
    for share in (area, ratio, *places):
        assert -0.01 < share.min() < 0.01
        assert 0.99 < share.max() < 1.01
        assert abs(share.mean() - 0.5) < 0.03
    assert (left + width).max() <= 1000
    assert (top + height).max() <= 1000


JITTERS = (0.4, 0.4, 0.2, 0.1)


def reference_jitter(image: Image.Image, strength: tuple[float, ...], draws: np.ndarray) -> Any:
    """torchvision's ColorJitter on Pillow images, with these draws for its random numbers."""
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    order = list(itertools.permutations(range(4)))[int(draws[6] * 24)]
    for i in (i for i in order if strength[i]):
        spread = strength[i] * (2 * float(draws[7 + i]) - 1)
        image = functions[i](image, spread if i == 3 else 1 + spread)
    return image


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_color_jitter_is_torchvisions(seed: int) -> None:
    """Of tensors exactly. Pillow is one level away in each of three steps, of which the next may
    multiply by 1.4; it turns hues in 8 bits, so that they are no measure."""
    image = picture(seed, (24, 24))
    draws = uniforms(seed, 1, NUM_DRAWS)
    jitter = replace(KEEP_ALL, color_jitter=JITTERS, color_jitter_prob=1.0)
    out = augment(pixels_of(image), 24, jitter, draws)
    assert torch.equal(out, reference_jitter(pixels_of(image), JITTERS, draws))
    without_hue = (*JITTERS[:3], 0.0)
    out = augment(pixels_of(image), 24, replace(jitter, color_jitter=without_hue), draws)
    expected = pixels_of(reference_jitter(image, without_hue, draws))
    assert levels_apart(out, expected) <= 4


@pytest.mark.parametrize(
    ("name", "strength", "draw", "function", "factor"),
    [
        ("brightness", (0.5, 0, 0, 0), 0.0, "adjust_brightness", 0.5),
        ("contrast", (0, 0.5, 0, 0), 0.75, "adjust_contrast", 1.25),
        ("saturation", (0, 0, 2.0, 0), 0.0, "adjust_saturation", 0.0),  # never below zero
        ("hue", (0, 0, 0, 0.5), 0.0, "adjust_hue", -0.5),
    ],
)
def test_each_adjustment_has_its_own_draw(
    name: str, strength: tuple[float, ...], draw: float, function: str, factor: float
) -> None:
    image = pixels_of(picture(1, (24, 24)))
    jitter = replace(KEEP_ALL, color_jitter=strength, color_jitter_prob=1.0)
    out = augment(image, 24, jitter, drawn(**{name: draw}))
    assert torch.equal(out, getattr(tv, function)(image, factor))
    assert not torch.equal(out, image)


def test_the_draw_of_the_order_gives_every_order() -> None:
    image = pixels_of(noise(24, 24))
    jitter = replace(KEEP_ALL, color_jitter=(0.9, 0.9, 0.9, 0.4), color_jitter_prob=1.0)
    values = dict(zip(COLOR_DRAWS[2:6], (0.9, 0.1, 0.8, 0.9), strict=True))
    outs = [augment(image, 24, jitter, drawn(order=(i + 0.5) / 24, **values)) for i in range(24)]
    assert len({out.numpy().tobytes() for out in outs}) > 12  # some orders agree


def test_grayscale_is_pillows_luma() -> None:
    image = noise(24, 24)
    out = augment(pixels_of(image), 24, replace(KEEP_ALL, gray_scale_prob=0.5), drawn(gray=0.49))
    assert levels_apart(out, pixels_of(image.convert("L"))) <= 1
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])


@pytest.mark.parametrize(
    ("augmentation", "draws"),
    [
        (replace(KEEP_ALL, color_jitter=JITTERS, color_jitter_prob=0.5), drawn(jitter=0.5)),
        (replace(KEEP_ALL, color_jitter=JITTERS), drawn(jitter=0.0)),
        (replace(KEEP_ALL, color_jitter_prob=1.0), drawn(jitter=0.0)),
        (replace(KEEP_ALL, gray_scale_prob=0.5), drawn(gray=0.5)),
        (KEEP_ALL, drawn(gray=0.0)),
    ],
)
def test_colors_stay_where_the_draw_or_the_settings_say_so(
    augmentation: Augmentation, draws: np.ndarray
) -> None:
    image = pixels_of(noise(24, 24))
    assert torch.equal(augment(image, 24, augmentation, draws), image)


@pytest.mark.parametrize(
    ("change", "random"),
    [
        ({}, False),
        ({"flip": 0.1}, True),
        ({"scale": (0.9, 1.0)}, True),
        ({"ratio": (0.9, 1.0)}, True),
        ({"gray_scale_prob": 0.1}, True),
        ({"color_jitter": JITTERS}, False),
        ({"color_jitter_prob": 0.5}, False),
        ({"color_jitter": JITTERS, "color_jitter_prob": 0.5}, True),
    ],
)
def test_is_random_tells_whether_draws_matter(change: dict[str, Any], random: bool) -> None:
    augmentation = replace(KEEP_ALL, **change)
    assert augmentation.is_random == random
    image = pixels_of(noise(40, 30))
    outs = [augment(image, 16, augmentation, uniforms(0, p, NUM_DRAWS)) for p in range(40)]
    assert random == any(not torch.equal(out, outs[0]) for out in outs)
    batch = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    augment(image, 16, augmentation, uniforms(0, 0, NUM_DRAWS), out=batch[0])
    assert torch.equal(batch[0], outs[0])


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(64, 64, 1), (111, 500, 1), (112, 112, 2), (300, 128, 2), (224, 230, 4), (3000, 448, 8)],
)
def test_an_image_is_decoded_smaller_while_an_eighth_too_few_pixels_are_left_at_most(
    height: int, width: int, expected: int
) -> None:
    whole = Augmentation(scale=(1, 1), ratio=(1, 1))
    assert shrink_of(height, width, 64, whole, np.zeros(NUM_DRAWS)) == expected


def test_what_is_cropped_counts_and_not_the_whole_image() -> None:
    """A quarter of the area is half of each side."""
    quarter = Augmentation(scale=(0.25, 0.25), ratio=(1, 1))
    assert shrink_of(256, 256, 64, quarter, np.zeros(NUM_DRAWS)) == 2
