"""Random crops, colors and other augmentations of uint8 images. The random numbers are arguments,
which the loader computes from (seed, position)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipx.data.order import hash_of, uniforms
from clipx.data.preprocessing import center
from clipx.data.rand_augment import DRAWS_PER_OPERATION, rand_augment
from clipx.data.resize import packed, resize

NUM_DRAWS = 12
_FURTHER_KEY = 0x4A06  # separates further draws from the others of a position


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop (Inception, arXiv:1409.4842) and horizontal flip; RandAugment
    (arXiv:1909.13719); color jitter, grayscale and blur as in SimCLR (arXiv:2002.05709); random
    erasing (arXiv:1708.04896). In this order.

    scale: share of the image's area
    ratio: width over height of the crop before resizing
    color_jitter: brightness, contrast and saturation b are multiplied by [max(0, 1 - b), 1 + b],
        hue h is rotated by [-h, h] turns, half a turn at most
    crop: False takes the model's own resizing in place of a random crop
    rand_augment: number of operations; rand_augment_magnitude: 0, which is none, to 10
    blur_sigma: of the Gaussian, in pixels of the model's input
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.0
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_prob: float = 0.0
    gray_scale_prob: float = 0.0
    crop: bool = True
    rand_augment: int = 0
    rand_augment_magnitude: float = 9.0
    blur_prob: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    erase_prob: float = 0.0

    @classmethod
    def of(cls, settings: Any) -> Augmentation:
        """Of a config that has some of these fields, and `crop_scale` and `crop_ratio`. Fields
        that it does not have keep their defaults."""
        values = {"scale": settings.crop_scale, "ratio": settings.crop_ratio}
        for field in fields(cls):
            if field.name in vars(settings):
                values[field.name] = vars(settings)[field.name]
        return cls(**values)

    # Each is read for every image of a batch.
    @cached_property
    def is_random(self) -> bool:
        crops = self.crop and (self.scale, self.ratio) != ((1, 1), (1, 1))
        colors = self.jitters or self.gray_scale_prob > 0
        return crops or self.flip > 0 or colors or self.needs_further_draws

    @cached_property
    def needs_further_draws(self) -> bool:
        """Whether it does anything that `FurtherDraws` decide."""
        return self.rand_augments or self.blur_prob > 0 or self.erase_prob > 0

    @cached_property
    def rand_augments(self) -> bool:
        return self.rand_augment > 0 and self.rand_augment_magnitude > 0

    @cached_property
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
    flips = draws[4] < augmentation.flip
    if augmentation.crop:
        left, top, width, height = crop_box(image.shape[-2], image.shape[-1], augmentation, draws)
        crop = packed(image[:, top : top + height, left : left + width])
        # Turned before the resize, since the view costs nothing.
        resize(crop[:, ::-1] if flips else crop, (size, size), out)
    else:
        fitted = fit(image, size)
        out.copy_(fitted.flip(-1) if flips else fitted)
    further = None
    if augmentation.needs_further_draws:
        further = FurtherDraws.of(draws, augmentation.rand_augment)
    if further is not None and augmentation.rand_augments:
        magnitude = augmentation.rand_augment_magnitude
        out.copy_(rand_augment(out, augmentation.rand_augment, magnitude, further.operations))
    if augmentation.jitters and draws[5] < augmentation.color_jitter_prob:
        out.copy_(_jitter(out, augmentation.color_jitter, draws[6:11]))
    if draws[11] < augmentation.gray_scale_prob:
        out.copy_(F.rgb_to_grayscale(out, num_output_channels=3))
    if further is not None:
        if further.blur < augmentation.blur_prob:
            low, high = augmentation.blur_sigma
            out.copy_(_blurred(out, low + further.sigma * (high - low)))
        if further.erase < augmentation.erase_prob:
            _erase(out, further.box, further.noise)
    return out


@dataclass(frozen=True)
class FurtherDraws:
    """Numbers in [0, 1) beside the NUM_DRAWS of a view.

    They are a hash of the first of these, so that a view has no more draws than before: batches of
    older settings do not change, and the stored draws of a teacher's views are enough.

    blur: whether; sigma: how much; erase: whether; box: (4,) area, ratio, left, top; noise: which
    operations: (2 N,) of RandAugment
    """

    blur: float
    sigma: float
    erase: float
    box: np.ndarray
    noise: float
    operations: np.ndarray

    @classmethod
    def of(cls, draws: np.ndarray, num_operations: int) -> FurtherDraws:
        key = int(hash_of(_FURTHER_KEY, int(draws[0] * 2**53))[0])
        values = uniforms(key, 0, 8 + DRAWS_PER_OPERATION * num_operations)
        blur, sigma, erase, noise = values[:4].tolist()
        return cls(blur, sigma, erase, values[4:8], noise, values[8:])


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
    if augmentation.is_random and augmentation.crop:
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


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """(3, S, S) uint8, by a Gaussian that is cut at three sigma."""
    # Reflection at the border needs a pixel more than the kernel reaches.
    reach = min(math.ceil(3 * sigma), min(image.shape[-2:]) - 1)
    side = 2 * reach + 1
    # Rows, then columns, in floats: torchvision's kernel of both takes `side` times as long.
    blurred = F.gaussian_blur(image.float(), [side, 1], [sigma, sigma])
    blurred = F.gaussian_blur(blurred, [1, side], [sigma, sigma])
    return blurred.round_().to(torch.uint8)


# The share of the area and the ratio of the sides that are erased: those of the paper but for the
# largest share, which is that of timm.
_ERASED = Augmentation(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3))


def _erase(image: Tensor, box: np.ndarray, noise: float) -> None:
    """Replace a rectangle of (3, S, S) uint8 by noise, in place. box, noise: see `FurtherDraws`"""
    left, top, width, height = crop_box(image.shape[-2], image.shape[-1], _ERASED, box)
    count = 3 * height * width
    words = hash_of(int(noise * 2**53), np.arange(-(-count // 8)))  # 8 levels each
    levels = torch.from_numpy(words.view(np.uint8)[:count])
    image[:, top : top + height, left : left + width] = levels.view(3, height, width)
