"""RandAugment (arXiv:1909.13719): a few operations, each drawn from the same 14, all at one
magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from clipx.data.preprocessing import MEAN

MAX_MAGNITUDE = 10
DRAWS_PER_OPERATION = 2  # which one it is, and its sign
# The average color, for pixels that move in from outside.
_FILL = [float(round(255 * mean)) for mean in MEAN]

# The strongest of each, at magnitude 10: those of AutoAugment (arXiv:1805.09501).
_SHEAR = 0.3  # columns per row
_TRANSLATION = 150 / 331  # of the side
_ROTATION = 30.0  # degrees
_CHANGE = 0.9  # of the factor of brightness, contrast, saturation and sharpness, which is 1 +- this
_POSTERIZED_BITS = 4  # of 8 that are lost


def rand_augment(image: Tensor, num_operations: int, magnitude: float, draws: np.ndarray) -> Tensor:
    """(3, S, S) uint8 -> the same shape.

    magnitude: 0 to MAX_MAGNITUDE
    draws: (num_operations * DRAWS_PER_OPERATION,) in [0, 1)
    """
    strength = magnitude / MAX_MAGNITUDE
    names = tuple(OPERATIONS)
    for place in range(0, num_operations * DRAWS_PER_OPERATION, DRAWS_PER_OPERATION):
        name = names[int(draws[place] * len(names))]
        signed = strength if draws[place + 1] < 0.5 else -strength
        image = OPERATIONS[name](image, signed)
    return image


def _affine(
    image: Tensor,
    *,
    angle: float = 0.0,
    translate: tuple[float, float] = (0.0, 0.0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """About the middle. angle and shear in degrees, translate in pixels: x, then y"""
    return F.affine(
        image,
        angle=angle,
        translate=list(translate),
        scale=1.0,
        shear=list(shear),
        interpolation=InterpolationMode.BILINEAR,
        fill=_FILL,
    )


def _solarize(image: Tensor, strength: float) -> Tensor:
    threshold = 256 * (1 - abs(strength))
    # torchvision would invert the white of a picture at a strength of 0.
    return image if threshold > 255 else F.solarize(image, threshold)


def _degrees_of_shear(strength: float) -> float:
    return math.degrees(math.atan(_SHEAR * strength))


def _pixels(side: int, strength: float) -> int:
    return round(_TRANSLATION * side * strength)


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, s: image,
    "auto_contrast": lambda image, s: F.autocontrast(image),
    "equalize": lambda image, s: F.equalize(image),
    "rotate": lambda image, s: _affine(image, angle=_ROTATION * s),
    "solarize": _solarize,
    "saturation": lambda image, s: F.adjust_saturation(image, 1 + _CHANGE * s),
    "posterize": lambda image, s: F.posterize(image, 8 - round(_POSTERIZED_BITS * abs(s))),
    "contrast": lambda image, s: F.adjust_contrast(image, 1 + _CHANGE * s),
    "brightness": lambda image, s: F.adjust_brightness(image, 1 + _CHANGE * s),
    "sharpness": lambda image, s: F.adjust_sharpness(image, 1 + _CHANGE * s),
    "shear_x": lambda image, s: _affine(image, shear=(_degrees_of_shear(s), 0.0)),
    "shear_y": lambda image, s: _affine(image, shear=(0.0, _degrees_of_shear(s))),
    "translate_x": lambda image, s: _affine(image, translate=(_pixels(image.shape[-1], s), 0)),
    "translate_y": lambda image, s: _affine(image, translate=(0, _pixels(image.shape[-2], s))),
}
"""(image (3, S, S) uint8, strength in [-1, 1]) -> image. Those whose strength has no direction take
its size; auto_contrast and equalize, which have none in the paper, ignore it. A draw chooses by the
order and the number of these, so that a change of either changes the batches of a run."""
