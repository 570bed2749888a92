"""Common corruptions of pictures at severities 1 to 5, in the spirit of ImageNet-C
(arXiv:1903.12261), with NumPy and Pillow alone.

Strengths are relative to the picture's size, so that they mean the same at any resolution; numbers
are not comparable with those of ImageNet-C's files. Its published code, the packages
imagecorruptions and imagenet-c, needs pictures of 224 pixels and NumPy before 2.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter
from torch import Tensor

from clipx.types import ImageTextEncoder

# Name -> strength at severities 1 to 5, in the unit given in `corrupt`.
CORRUPTIONS = {
    "gaussian_noise": (0.04, 0.08, 0.12, 0.18, 0.26),
    "shot_noise": (250, 100, 40, 15, 7),
    "impulse_noise": (0.01, 0.03, 0.06, 0.1, 0.17),
    "gaussian_blur": (0.004, 0.008, 0.013, 0.02, 0.03),
    "pixelate": (0.6, 0.45, 0.3, 0.2, 0.13),
    "jpeg": (40, 25, 15, 9, 5),
    "contrast": (0.6, 0.45, 0.3, 0.18, 0.1),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "rotate": (8, 15, 25, 40, 60),
    "shift": (0.05, 0.1, 0.17, 0.25, 0.35),
}
GRAY = (128, 128, 128)


def fitted_picture(image: Tensor, encoder: ImageTextEncoder) -> Image.Image:
    """The model's view of a (3, H, W) uint8 image. It is changed after the crop, so that a change
    of nothing costs no accuracy, whatever the model's resizing leaves out."""
    pixels = encoder.fit(image).permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


def corrupt(
    image: Image.Image, name: str, severity: int, random: np.random.Generator
) -> Image.Image:
    """name: of CORRUPTIONS"""
    strength = CORRUPTIONS[name][severity - 1]
    pixels = np.asarray(image, dtype=np.float64) / 255  # (H, W, 3)
    side = min(image.size)
    match name:
        case "gaussian_noise":  # standard deviation
            pixels = pixels + random.normal(0, strength, pixels.shape)
        case "shot_noise":  # counted photons of a white pixel
            pixels = random.poisson(pixels * strength) / strength
        case "impulse_noise":  # share of values that become black or white
            draws = random.random(pixels.shape)
            pixels[draws < strength] = 1.0
            pixels[draws < strength / 2] = 0.0
        case "gaussian_blur":  # radius as a share of the shorter side
            return image.filter(ImageFilter.GaussianBlur(strength * side))
        case "pixelate":  # share of each side's pixels that are kept
            width = max(1, round(image.width * strength))
            height = max(1, round(image.height * strength))
            small = image.resize((width, height), Image.Resampling.BOX)
            return small.resize(image.size, Image.Resampling.NEAREST)
        case "jpeg":  # quality
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=int(strength))
            return Image.open(buffer).convert("RGB")
        case "contrast":  # share of the contrast that is kept
            mean = pixels.mean((0, 1), keepdims=True)
            pixels = (pixels - mean) * strength + mean
        case "brightness":  # added to each value
            pixels = pixels + strength
        case "rotate":  # degrees, to the left or right
            degrees = float(strength * random.choice((-1, 1)))
            return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=GRAY)
        case "shift":  # distance as a share of the shorter side, in any direction
            angle = random.uniform(0, 2 * np.pi)
            x = strength * side * np.cos(angle)
            y = strength * side * np.sin(angle)
            matrix = (1, 0, x, 0, 1, y)
            return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GRAY)
    pixels = (pixels.clip(0, 1) * 255).round()
    return Image.fromarray(pixels.astype(np.uint8))
