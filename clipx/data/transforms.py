"""uint8 image transforms. Random ones take their draws as numbers, made from (seed, position) by
the loader."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipx.data.resize import packed, resize

# OpenAI's CLIP statistics (arXiv:2103.00020), which open_clip uses by default
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
NUM_DRAWS = 12


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop (Inception, arXiv:1409.4842), horizontal flip, and what SimCLR adds
    (arXiv:2002.05709): color jitter and grayscale.

    scale: share of the image's area; ratio: width over height of the crop before resizing
    color_jitter: brightness, contrast and saturation b are multiplied by [max(0, 1 - b), 1 + b],
    hue h is turned by [-h, h] circles, at most half of one
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.0
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_prob: float = 0.0
    gray_scale_prob: float = 0.0

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
    fit: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size) uint8. Without randomness it is what evaluation sees.

    draws: (NUM_DRAWS,) in [0, 1): area, ratio, left, top, flip, whether colors jitter, the order of
    that, brightness, contrast, saturation, hue, grayscale
    out: where the result is written, e.g. a row of a batch
    fit: what evaluation does with the model's images, `Preprocessing.fit`; None: `center`
    """
    if not augmentation.is_random:
        image = (fit or center)(image, size)
        return image if out is None else out.copy_(image)
    full_height, full_width = image.shape[-2:]
    left, top, width, height = crop_box(full_height, full_width, augmentation, draws)
    crop = packed(image[:, top : top + height, left : left + width])
    if draws[4] < augmentation.flip:
        crop = crop[:, ::-1]
    image = torch.empty((3, size, size), dtype=torch.uint8) if out is None else out
    resize(crop, (size, size), image)
    if augmentation.jitters and draws[5] < augmentation.color_jitter_prob:
        image.copy_(_jitter(image, augmentation.color_jitter, draws[6:11]))
    if draws[11] < augmentation.gray_scale_prob:
        image.copy_(F.rgb_to_grayscale(image, num_output_channels=3))
    return image


def crop_box(
    height: int, width: int, augmentation: Augmentation, draws: np.ndarray
) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels."""
    low, high = augmentation.scale
    area = height * width * (low + draws[0] * (high - low))
    log_low, log_high = (math.log(r) for r in augmentation.ratio)
    ratio = math.exp(log_low + draws[1] * (log_high - log_low))
    # A crop wider or taller than the image is cut to it, instead of drawing again: one sample, one
    # set of draws.
    crop_width = max(1, min(width, round(math.sqrt(area * ratio))))
    crop_height = max(1, min(height, round(math.sqrt(area / ratio))))
    left = int(draws[2] * (width - crop_width + 1))
    top = int(draws[3] * (height - crop_height + 1))
    return left, top, crop_width, crop_height


_ADJUSTMENTS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
_ORDERS = tuple(permutations(range(4)))


def _jitter(image: Tensor, strength: tuple[float, ...], draws: np.ndarray) -> Tensor:
    """draws: the order of the adjustments, of 24, and one for each of them."""
    for i in _ORDERS[int(draws[0] * len(_ORDERS))]:
        if strength[i] > 0:
            hue = i == 3  # turned by so much; the others are multiplied
            low = -strength[i] if hue else max(0.0, 1 - strength[i])
            high = strength[i] if hue else 1 + strength[i]
            image = _ADJUSTMENTS[i](image, low + float(draws[1 + i]) * (high - low))
    return image


def shorter_side(image: Tensor, size: int) -> tuple[int, int]:
    """Height and width with the shorter side of `size`; the longer one is cut down to whole
    pixels, as torchvision's Resize does."""
    height, width = image.shape[-2:]
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def center(image: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size) uint8: shorter side to `size`, then the middle. What
    evaluation uses."""
    target = shorter_side(image, size)
    out = torch.empty((3, *target), dtype=torch.uint8)
    resize(packed(image), target, out)
    top, left = (round((side - size) / 2) for side in target)
    return out[:, top : top + size, left : left + size]


def normalize(
    image: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Tensor:
    """(B, 3, H, W) uint8 on any device -> float32 with zero mean and unit variance over natural
    images."""
    scale = torch.tensor([255.0 * s for s in std], device=image.device).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=image.device)
    return (image.float() / scale).sub_(shift.view(1, 3, 1, 1))  # never into `image` itself
