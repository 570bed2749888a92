"""Common corruptions of pictures at severities 1 to 5, in the spirit of ImageNet-C
(arXiv:1903.12261), with NumPy and Pillow alone.

Strengths are relative to the picture's size, so that they mean the same at any resolution; numbers
are not comparable with those of ImageNet-C's files. Its published code, the packages
imagecorruptions and imagenet-c, needs pictures of 224 pixels and NumPy before 2.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter
from torch import Tensor

from clipx.types import Encoder

Corrupt = Callable[[Image.Image, int, np.random.Generator], Image.Image]
GRAY = (128, 128, 128)


def fitted_picture(image: Tensor, encoder: Encoder) -> Image.Image:
    """The model's view of a (3, H, W) uint8 image. Changed after the crop, whatever the model's
    resizing leaves out, an unchanged picture costs no accuracy."""
    pixels = encoder.fit(image).permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


def gaussian_noise(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    spread = (0.04, 0.08, 0.12, 0.18, 0.26)[severity - 1]
    pixels = _to_pixels(image)
    return _to_image(pixels + random.normal(0, spread, pixels.shape))


def shot_noise(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    """Counted photons: the fewer, the noisier."""
    photons = (250, 100, 40, 15, 7)[severity - 1]
    return _to_image(random.poisson(_to_pixels(image) * photons) / photons)


def impulse_noise(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    """Salt and pepper."""
    share = (0.01, 0.03, 0.06, 0.1, 0.17)[severity - 1]
    pixels = _to_pixels(image)
    draws = random.random(pixels.shape)
    pixels[draws < share] = 1.0
    pixels[draws < share / 2] = 0.0
    return _to_image(pixels)


def gaussian_blur(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    radius = (0.004, 0.008, 0.013, 0.02, 0.03)[severity - 1] * min(image.size)
    return image.filter(ImageFilter.GaussianBlur(radius))


def pixelate(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    share = (0.6, 0.45, 0.3, 0.2, 0.13)[severity - 1]
    width = max(1, round(image.width * share))
    height = max(1, round(image.height * share))
    small = image.resize((width, height), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def jpeg(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=(40, 25, 15, 9, 5)[severity - 1])
    return Image.open(buffer).convert("RGB")


def contrast(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    kept = (0.6, 0.45, 0.3, 0.18, 0.1)[severity - 1]
    pixels = _to_pixels(image)
    mean = pixels.mean((0, 1), keepdims=True)
    return _to_image((pixels - mean) * kept + mean)


def brightness(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    added = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    return _to_image(_to_pixels(image) + added)


def rotate(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    """To the left or right, with gray outside the picture."""
    degrees = (8, 15, 25, 40, 60)[severity - 1] * random.choice((-1, 1))
    return image.rotate(float(degrees), Image.Resampling.BICUBIC, fillcolor=GRAY)


def shift(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    """In any direction, with gray outside the picture."""
    distance = (0.05, 0.1, 0.17, 0.25, 0.35)[severity - 1] * min(image.size)
    angle = random.uniform(0, 2 * np.pi)
    matrix = (1, 0, distance * np.cos(angle), 0, 1, distance * np.sin(angle))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GRAY)


def _to_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) float64 in [0, 1]"""
    return np.asarray(image, dtype=np.float64) / 255


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


CORRUPTIONS: dict[str, Corrupt] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "gaussian_blur": gaussian_blur,
    "pixelate": pixelate,
    "jpeg": jpeg,
    "contrast": contrast,
    "brightness": brightness,
    "rotate": rotate,
    "shift": shift,
}
