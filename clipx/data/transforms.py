"""uint8 image transforms. Random ones take their draws as numbers, made from (seed, position) by
the loader."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

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


def augment(image: Tensor, size: int, augmentation: Augmentation, draws: np.ndarray) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size) uint8.

    draws: (NUM_DRAWS,) in [0, 1): area, ratio, left, top, flip
    """
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
    """Antialiased bicubic on uint8: at most one level from Pillow's."""
    if tuple(image.shape[-2:]) == target:
        return image
    return F.resize(image, list(target), interpolation=InterpolationMode.BICUBIC, antialias=True)


def normalize(
    image: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Tensor:
    """(B, 3, H, W) uint8 on any device -> float32 with zero mean and unit variance over natural
    images."""
    scale = torch.tensor([255.0 * s for s in std], device=image.device).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=image.device)
    return image.float() / scale - shift.view(1, 3, 1, 1)
