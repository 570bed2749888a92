"""Common corruptions of pictures at severities 1 to 5, in the spirit of ImageNet-C
(arXiv:1903.12261), by NumPy and Pillow alone. Strengths are relative to the picture's size, so they
mean the same at any resolution; numbers are not comparable with those of ImageNet-C's files."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Corrupt = Callable[[Image.Image, int, np.random.Generator], Image.Image]


def _level(values: tuple[float, float, float, float, float], severity: int) -> float:
    return values[severity - 1]


def _shown(pixels: np.ndarray) -> Image.Image:
    """(H, W, 3) float in [0, 1]"""
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


def gaussian_noise(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    spread = _level((0.04, 0.08, 0.12, 0.18, 0.26), severity)
    return _shown(pixels + random.normal(0, spread, pixels.shape))


def shot_noise(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    """Photons counted: the fewer, the noisier."""
    photons = _level((250, 100, 40, 15, 7), severity)
    return _shown(random.poisson(_pixels(image) * photons) / photons)


def impulse_noise(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    """Salt and pepper."""
    pixels = _pixels(image)
    draws = random.random(pixels.shape)
    share = _level((0.01, 0.03, 0.06, 0.1, 0.17), severity)
    pixels[draws < share] = 1.0
    pixels[draws < share / 2] = 0.0
    return _shown(pixels)


def gaussian_blur(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    radius = min(image.size) * _level((0.004, 0.008, 0.013, 0.02, 0.03), severity)
    return image.filter(ImageFilter.GaussianBlur(radius))


def pixelate(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    share = _level((0.6, 0.45, 0.3, 0.2, 0.13), severity)
    small = [max(1, round(side * share)) for side in image.size]
    return image.resize((small[0], small[1]), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.NEAREST
    )


def jpeg(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(_level((40, 25, 15, 9, 5), severity)))
    return Image.open(buffer).convert("RGB")


def contrast(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    mean = pixels.mean((0, 1), keepdims=True)
    return _shown((pixels - mean) * _level((0.6, 0.45, 0.3, 0.18, 0.1), severity) + mean)


def brightness(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    return _shown(_pixels(image) + _level((0.1, 0.2, 0.3, 0.4, 0.5), severity))


def rotate(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    """To the left or right; what comes into view is gray."""
    angle = _level((8, 15, 25, 40, 60), severity) * random.choice((-1, 1))
    return image.rotate(float(angle), Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))


def shift(image: Image.Image, severity: int, random: np.random.Generator) -> Image.Image:
    """In a direction of its own; what comes into view is gray."""
    far = min(image.size) * _level((0.05, 0.1, 0.17, 0.25, 0.35), severity)
    angle = random.uniform(0, 2 * np.pi)
    matrix = (1, 0, far * np.cos(angle), 0, 1, far * np.sin(angle))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128))


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
