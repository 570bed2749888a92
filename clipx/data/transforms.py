"""uint8 image transforms. Random ones take their draws as numbers, made from (seed, position) by
the loader."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from clipx.types import UserError

# OpenAI's CLIP statistics (arXiv:2103.00020), which open_clip uses by default
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
NUM_DRAWS = 5


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop (Inception, arXiv:1409.4842) and horizontal flip.

    scale: share of the image's area; ratio: width over height of the crop before resizing
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.0

    @property
    def is_random(self) -> bool:
        return (self.scale, self.ratio, self.flip) != ((1, 1), (1, 1), 0)


def augment(image: Tensor, size: int, augmentation: Augmentation, draws: np.ndarray) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size) uint8. Without randomness it is what evaluation sees.

    draws: (NUM_DRAWS,) in [0, 1): area, ratio, left, top, flip
    """
    if not augmentation.is_random:
        return center(image, size)
    height, width = image.shape[-2:]
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
    crop = image[:, top : top + crop_height, left : left + crop_width]
    if draws[4] < augmentation.flip:
        crop = crop.flip(-1)
    return resize(crop, (size, size))


def center(image: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size) uint8: shorter side to `size`, then the middle. What
    evaluation uses."""
    height, width = image.shape[-2:]
    factor = size / min(height, width)
    # The shorter side is exact; the longer one is cut down to whole pixels, as torchvision's Resize
    # does.
    target = (
        (size, int(size * width / height))
        if height <= width
        else (int(size * height / width), size)
    )
    image = resize(image, target) if factor != 1 else image
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def resize(image: Tensor, target: tuple[int, int]) -> Tensor:
    """Antialiased bicubic on uint8, rows first: at most two levels from Pillow's in that order.

    Pillow 13 begins with the columns where that is less work, and so clips overshoots elsewhere.
    """
    if tuple(image.shape[-2:]) == target:
        return image
    return F.resize(image, list(target), interpolation=InterpolationMode.BICUBIC, antialias=True)


@dataclass(frozen=True)
class Normalization:
    """uint8 pixels -> what a model expects of them."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @classmethod
    def of(cls, model_json: dict[str, Any]) -> Normalization:
        """By the model JSON's `preprocess_cfg`, as open_clip's folders have it; CLIP's by default.
        Raises UserError."""
        told = model_json.get("preprocess_cfg", {})
        mean, std = tuple(told.get("mean", MEAN)), tuple(told.get("std", STD))
        if not (len(mean) == len(std) == 3 and min(std) > 0):
            raise UserError(
                "preprocess_cfg needs three means and three positive standard deviations, "
                f"not {mean} and {std}"
            )
        return cls(mean, std)

    def __call__(self, image: Tensor) -> Tensor:
        return normalize(image, self.mean, self.std)


def normalize(
    image: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Tensor:
    """(B, 3, H, W) uint8 on any device -> float32 with zero mean and unit variance over natural
    images."""
    scale = torch.tensor([255.0 * s for s in std], device=image.device).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=image.device)
    return image.float() / scale - shift.view(1, 3, 1, 1)
