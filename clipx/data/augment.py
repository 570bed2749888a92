"""Random crops and colors of uint8 images. The random numbers are arguments, which the loader
computes from (seed, position)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipx.data.preprocessing import center
from clipx.data.resize import packed, resize

NUM_DRAWS = 12


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop (Inception, arXiv:1409.4842) and horizontal flip; color jitter and
    grayscale as in SimCLR (arXiv:2002.05709).

    scale: share of the image's area
    ratio: width over height of the crop before resizing
    color_jitter: brightness, contrast and saturation b are multiplied by [max(0, 1 - b), 1 + b],
        hue h is rotated by [-h, h] turns, half a turn at most
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.0
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_prob: float = 0.0
    gray_scale_prob: float = 0.0

    @classmethod
    def of(cls, settings: Any) -> Augmentation:
        """Of a config that has these settings under their names, with `crop_scale` and
        `crop_ratio`."""
        return cls(
            scale=settings.crop_scale,
            ratio=settings.crop_ratio,
            flip=settings.flip,
            color_jitter=settings.color_jitter,
            color_jitter_prob=settings.color_jitter_prob,
            gray_scale_prob=settings.gray_scale_prob,
        )

    @property
    def is_random(self) -> bool:
        crops = (self.scale, self.ratio, self.flip) != ((1, 1), (1, 1), 0)
        return crops or self.jitters or self.gray_scale_prob > 0

    @property
    def jitters(self) -> bool:
        return self.color_jitter_prob > 0 and any(self.color_jitter)


def augment(
    image: Tensor,
    size: int,
    augmentation: Augmentation,
    draws: np.ndarray,
    *,
    out: Tensor | None = None,
    fit: Callable[[Tensor, int], Tensor] = center,
) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size) uint8. Without randomness, the image of evaluation.

    draws: (NUM_DRAWS,) in [0, 1): area, ratio, left, top, flip, whether colors change, the order of
        the changes, brightness, contrast, saturation, hue, grayscale
    out: where to write the result, for example a row of a batch
    fit: the model's resizing in evaluation, `Preprocessing.fit`
    """
    if out is None:
        out = torch.empty((3, size, size), dtype=torch.uint8)
    if not augmentation.is_random:
        if image.shape[1:] == (size, size):  # no `fit` would change it
            resize(packed(image), (size, size), out)
        else:
            out.copy_(fit(image, size))  # the same pixels in training and evaluation
        return out
    left, top, width, height = crop_box(image.shape[-2], image.shape[-1], augmentation, draws)
    crop = packed(image[:, top : top + height, left : left + width])
    if draws[4] < augmentation.flip:
        crop = crop[:, ::-1]  # before the resize, since the view costs nothing
    resize(crop, (size, size), out)
    if augmentation.jitters and draws[5] < augmentation.color_jitter_prob:
        out.copy_(_jitter(out, augmentation.color_jitter, draws[6:11]))
    if draws[11] < augmentation.gray_scale_prob:
        out.copy_(F.rgb_to_grayscale(out, num_output_channels=3))
    return out


def crop_box(
    height: int, width: int, augmentation: Augmentation, draws: np.ndarray
) -> tuple[int, int, int, int]:
    """Left, top, width and height of the crop in pixels."""
    low, high = augmentation.scale
    area = height * width * (low + draws[0] * (high - low))
    low, high = augmentation.ratio  # uniform in the logarithm
    ratio = math.exp(math.log(low) + draws[1] * (math.log(high) - math.log(low)))
    # A crop that is wider or taller than the image is cut. Drawing again, as torchvision does,
    # would need an unknown number of draws.
    crop_width = max(1, min(width, round(math.sqrt(area * ratio))))
    crop_height = max(1, min(height, round(math.sqrt(area / ratio))))
    left = int(draws[2] * (width - crop_width + 1))
    top = int(draws[3] * (height - crop_height + 1))
    return left, top, crop_width, crop_height


def shrink_of(
    height: int, width: int, size: int, augmentation: Augmentation, draws: np.ndarray
) -> int:
    """1, 2, 4 or 8: how many times smaller an image may be decoded, so that what `augment` keeps of
    it still has about `size` pixels in each direction."""
    if augmentation.is_random:
        _, _, width, height = crop_box(height, width, augmentation, draws)
    for shrink in (8, 4, 2):
        # An eighth too few still counts: enlarging by so little costs hardly any detail.
        if min(height, width) >= shrink * size * 7 / 8:
            return shrink
    return 1


_ADJUSTMENTS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
_ORDERS = tuple(permutations(range(4)))


def _jitter(image: Tensor, strength: tuple[float, ...], draws: np.ndarray) -> Tensor:
    """draws: the order of the four adjustments (of 24), then one for each of them"""
    for i in _ORDERS[int(draws[0] * len(_ORDERS))]:
        if strength[i] <= 0:
            continue
        low, high = max(0.0, 1 - strength[i]), 1 + strength[i]
        if _ADJUSTMENTS[i] is F.adjust_hue:  # rotated, where the others are multiplied
            low, high = -strength[i], strength[i]
        image = _ADJUSTMENTS[i](image, low + float(draws[1 + i]) * (high - low))
    return image
