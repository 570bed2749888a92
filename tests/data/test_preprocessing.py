"""Every resize mode and interpolation of a `preprocess_cfg`, beside open_clip's own transform."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image

from clipx.data.decode import pixels_of
from clipx.data.preprocessing import Preprocessing
from clipx.types import UserError

PILLOW = int(PIL.__version__.split(".")[0])
INTERPOLATIONS = ("bicubic", "bilinear", "random")
RESIZE_MODES = ("shortest", "longest", "squash")


def noise(width: int, height: int) -> Image.Image:
    # Half the range, so that no overshoot is clipped between the passes of a bicubic resize, which
    # Pillow 12 does in another order.
    pixels = np.random.default_rng(width * 1000 + height).integers(64, 192, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@settings(max_examples=25, deadline=None)
@given(width=st.integers(8, 120), height=st.integers(8, 120), size=st.integers(4, 90))
def test_images_are_fitted_as_open_clip_does(
    resize_mode: str, interpolation: str, width: int, height: int, size: int
) -> None:
    cfg: dict[str, Any] = {"resize_mode": resize_mode, "interpolation": interpolation}
    cfg |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "fill_color": 77}
    if resize_mode == "longest":  # open_clip fails where the shorter side rounds to no pixel
        assume(round(min(width, height) * size / max(width, height)) > 0)
    image = noise(width, height)
    ours = Preprocessing.of({"preprocess_cfg": cfg})
    reference = image_transform(size, is_train=False, **cfg)
    fitted = ours(ours.fit(pixels_of(image), size)[None])[0]
    assert fitted.shape == (3, size, size)
    levels = (
        (fitted - reference(image)).abs() * 255 * torch.tensor(cfg["std"])[:, None, None]
    ).amax()
    exact = interpolation == "bilinear" or PILLOW >= 13
    assert levels < (0.01 if exact else 2.01)  # float32 rounds at 0.01 of a level


def test_an_image_of_the_models_size_is_left_alone() -> None:
    image = pixels_of(noise(24, 24))
    for resize_mode in RESIZE_MODES:
        for interpolation in INTERPOLATIONS:
            assert torch.equal(
                Preprocessing(resize_mode=resize_mode, interpolation=interpolation).fit(image, 24),
                image,
            )


def test_what_is_written_reads_back_equal() -> None:
    given = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "longest", 9)
    assert Preprocessing.of({"preprocess_cfg": asdict(given)}) == given
    assert Preprocessing.of({}) == Preprocessing.of({"preprocess_cfg": {"mean": None}})
    assert Preprocessing.of({"preprocess_cfg": {"mean": 0.5}}).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"interpolation": "nearest"}, "interpolation: .*'bicubic', 'bilinear' .*'nearest'"),
        ({"resize_mode": "crop"}, "resize_mode: .*'shortest', 'longest' or 'squash' .*'crop'"),
        ({"std": [0.2, 0.2, 0.0]}, r"std\.2: .* greater than 0 .*0\.0"),
        ({"mean": [0.5, 0.5]}, r"mean\.2: missing"),
        ({"mean": [0.5, 0.5, 0.5, 0.5]}, r"mean: .* at most 3 items"),
        ({"mean": [0.5, 0.5, float("nan")]}, r"mean\.2: .* finite number"),
        ({"mean": "0.5"}, r"mean\.0: .* valid number .*'0\.5'"),
        ({"mean": True}, r"mean\.0: .* valid number .*True"),
        ({"fill_color": 300}, "fill_color: .* less than or equal to 255 .*300"),
        ({"fill_color": True}, "fill_color: .* valid integer .*True"),
        ({"fill_color": 300, "std": 0}, "(?s)std.*fill_color"),  # all faults at once
        ("x", "must be a mapping, not 'x'"),
    ],
)
def test_what_cannot_be_done_is_refused(cfg: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing.of({"preprocess_cfg": cfg})
