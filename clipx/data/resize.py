"""Antialiased bicubic resizing (Keys 1981, a = -0.5) to the pixels of Pillow, bit by bit: its
22-bit weights, its rounding after each of the two passes. Numba, where installed, does it in a
fifth of Pillow's time; else Pillow does it.

A packed pixel is one 32-bit word, RGB and a byte that means nothing: an image of such words is
quickly turned.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_PRECISION = 22
_SUPPORT = 2.0


def packed(image: Tensor) -> np.ndarray:
    """(3, H, W) uint8 -> (H, W) int32, a view where its memory is (H, W, 4), as `decode` has it."""
    image = image.cpu()
    _, height, width = image.shape
    channel, row, pixel = image.stride()
    if (channel, pixel) == (1, 4) and row % 4 == image.storage_offset() % 4 == 0:
        whole = image.as_strided((height, width, 4), (row, 4, 1))
    else:
        whole = torch.empty(height, width, 4, dtype=torch.uint8)
        whole[..., :3] = image.permute(1, 2, 0)
    return whole.numpy().view(np.int32)[..., 0]


def resize(image: np.ndarray, target: tuple[int, int], out: Tensor) -> None:
    """(H, W) packed pixels -> `out`, (3, *target) uint8.

    Pillow 13 does the rows first, except where the columns lose twice as many pixels (found by
    comparing it with its own single passes); Pillow 12 always does. Here it is 13's order, whatever
    is installed.
    """
    height, width = image.shape
    columns_first = height - target[0] > 2 * max(0, width - target[1])
    for axis in (0, 1) if columns_first else (1, 0):
        if image.shape[axis] != target[axis]:
            image = _pass(image, axis, target[axis])
    pixels, planes = np.ascontiguousarray(image).view(np.uint8).reshape(*target, 4), out.numpy()
    if (kernel := _kernel()) is None:
        planes[:] = pixels[..., :3].transpose(2, 0, 1)
    else:
        kernel.planes(pixels, planes)


def _pass(image: np.ndarray, axis: int, target: int) -> np.ndarray:
    """One axis brought to `target`."""
    kernel = _kernel()
    if kernel is None:
        return _by_pillow(image, axis, target)
    if axis == 1:  # columns
        image = _turned(kernel, image)
    weights = _weights(len(image), target)
    out = np.empty((target, image.shape[1]), np.int32)
    kernel.rows(np.ascontiguousarray(image).view(np.uint8), *weights, out.view(np.uint8))
    return out if axis == 0 else _turned(kernel, out)


def _turned(kernel: ModuleType, image: np.ndarray) -> np.ndarray:
    out = np.empty(image.shape[::-1], np.int32)
    kernel.turn(image, out)
    return out


def _by_pillow(image: np.ndarray, axis: int, target: int) -> np.ndarray:
    height, width = image.shape
    pixels = Image.frombuffer(
        "RGBX", (width, height), np.ascontiguousarray(image), "raw", "RGBX", 0, 1
    )
    size = (width, target) if axis == 0 else (target, height)
    return np.array(pixels.resize(size, Image.Resampling.BICUBIC)).view(np.int32)[..., 0]


@lru_cache(4096)
def _weights(size: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Of `size` rows for `target`: (T,) the first of each, (T, an even number) weights in 2^-22."""
    scale = size / target
    stretch = max(1.0, scale)  # antialiasing: the kernel covers what an output pixel covers
    center = (np.arange(target) + 0.5) * scale
    reach = _SUPPORT * stretch
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((center + reach + 0.5).astype(np.int64), size) - first
    step = np.arange(count.max() + count.max() % 2)
    x = np.abs((first[:, None] + step - center[:, None] + 0.5) * (1 / stretch))
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    kernel = np.where(x < 1, near, np.where(x < _SUPPORT, far, 0.0)) * (step < count[:, None])
    kernel /= kernel.sum(1, keepdims=True)
    rounded = kernel * (1 << _PRECISION) + np.where(kernel < 0, -0.5, 0.5)
    return first, np.trunc(rounded).astype(np.int32)


@cache
def _kernel() -> ModuleType | None:
    if find_spec("numba") is None:
        return None
    from clipx.data import resize_kernel

    return resize_kernel
