"""Antialiased bicubic resizing (Keys 1981, a = -0.5) with Pillow's pixels, bit by bit: its 22-bit
weights and its rounding after each of the two passes. Numba, where installed, takes a fifth of
Pillow's time; else Pillow does it.

A packed pixel is one 32-bit word: RGB and one unused byte. Images of words are quick to transpose.
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
    """(3, H, W) uint8 -> (H, W) int32; a view of memory that is (H, W, 4), as `decode` returns."""
    image = image.cpu()
    _, height, width = image.shape
    channel, row, pixel = image.stride()
    if (channel, pixel) == (1, 4) and row % 4 == image.storage_offset() % 4 == 0:
        words = image.as_strided((height, width, 4), (row, 4, 1))
    else:
        words = torch.empty(height, width, 4, dtype=torch.uint8)
        words[..., :3] = image.permute(1, 2, 0)
    return words.numpy().view(np.int32)[..., 0]


def resize(image: np.ndarray, target: tuple[int, int], out: Tensor) -> None:
    """(H, W) packed pixels -> `out`, (3, *target) uint8.

    Pillow 13 resizes along the rows first, except where the columns lose more than twice as many
    pixels (measured against its own single passes); Pillow 12 always does. This is 13's order for
    either.
    """
    height, width = image.shape
    columns_first = height - target[0] > 2 * max(0, width - target[1])
    for axis in (0, 1) if columns_first else (1, 0):
        if image.shape[axis] != target[axis]:
            image = _pass(image, axis, target[axis])
    kernel = _kernel()
    if kernel is not None:
        kernel.planes(image, out.numpy())
    else:
        # A crop of the target's size comes here unchanged, as a view that is not contiguous.
        pixels = np.ascontiguousarray(image).view(np.uint8).reshape(*target, 4)
        out.numpy()[:] = pixels[..., :3].transpose(2, 0, 1)


def _pass(image: np.ndarray, axis: int, target: int) -> np.ndarray:
    """Resize one axis to `target`."""
    kernel = _kernel()
    if kernel is None:
        height, width = image.shape
        words = np.ascontiguousarray(image)
        pixels = Image.frombuffer("RGBX", (width, height), words, "raw", "RGBX", 0, 1)
        size = (width, target) if axis == 0 else (target, height)
        resized = pixels.resize(size, Image.Resampling.BICUBIC)
        return np.array(resized).view(np.int32)[..., 0]
    if axis == 1:  # the kernel sums whole rows, so transpose before and after
        return _transposed(kernel, _pass(_transposed(kernel, image), 0, target))
    first, weights = _weights(len(image), target)
    out = np.empty((target, image.shape[1]), np.int32)
    kernel.rows(np.ascontiguousarray(image).view(np.uint8), first, weights, out.view(np.uint8))
    return out


def _transposed(kernel: ModuleType, image: np.ndarray) -> np.ndarray:
    out = np.empty(image.shape[::-1], np.int32)
    kernel.transpose(image, out)
    return out


@lru_cache(4096)
def _weights(size: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `target` rows: (T,) the first of `size` rows that it sums, and (T, K) their
    weights in units of 2^-22. K is even, since the kernel sums two rows at once."""
    scale = size / target
    stretch = max(1.0, scale)  # antialiasing: the filter covers the source of an output pixel
    center = (np.arange(target) + 0.5) * scale
    reach = _SUPPORT * stretch
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((center + reach + 0.5).astype(np.int64), size) - first
    step = np.arange(count.max() + count.max() % 2)

    # Keys' cubic with a = -0.5, at distances x of the source pixels from the center
    x = np.abs((first[:, None] + step - center[:, None] + 0.5) * (1 / stretch))
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < _SUPPORT, far, 0.0)) * (step < count[:, None])
    weights /= weights.sum(1, keepdims=True)

    rounded = weights * (1 << _PRECISION) + np.where(weights < 0, -0.5, 0.5)
    return first, np.trunc(rounded).astype(np.int32)


@cache
def _kernel() -> ModuleType | None:
    """The compiled passes, None without numba. Imported at the first image: it takes a second."""
    if find_spec("numba") is None:
        return None
    from clipx.data import resize_kernel

    return resize_kernel
