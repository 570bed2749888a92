"""Fit an image to a model's size and normalize it, as open_clip's evaluation transform does for the
`preprocess_cfg` of a model JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipx.data.resize import packed, resize
from clipx.types import UserError

# OpenAI's CLIP statistics (arXiv:2103.00020), which open_clip uses by default
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
RESIZE_MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear", "random")  # open_clip evaluates `random` with bicubic


@dataclass(frozen=True)
class Preprocessing:
    """mean, std: of the channels of pixels in [0, 1]
    interpolation: Pillow's, with antialiasing
    resize_mode: `shortest` resizes the shorter side and crops the middle; `longest` resizes the
        longer side and pads; `squash` resizes both sides
    fill_color: of the padding, 0 to 255
    """

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    @classmethod
    def of(cls, model_json: dict[str, Any]) -> Preprocessing:
        """The model JSON's `preprocess_cfg`, with open_clip's defaults. Raises UserError."""
        cfg = model_json.get("preprocess_cfg") or {}
        if not isinstance(cfg, dict):
            raise UserError(f"preprocess_cfg must be a mapping, not {cfg!r}")
        # null stands for the default, as in open_clip.
        given = {key: value for key, value in cfg.items() if value is not None}
        mean = _channels("mean", given.get("mean", MEAN))
        std = _channels("std", given.get("std", STD))
        if min(std) <= 0:
            raise UserError(f"preprocess_cfg.std {std} must be three positive standard deviations")
        interpolation = given.get("interpolation", "bicubic")
        resize_mode = given.get("resize_mode", "shortest")
        for key, value, known in (
            ("interpolation", interpolation, INTERPOLATIONS),
            ("resize_mode", resize_mode, RESIZE_MODES),
        ):
            if value not in known:
                raise UserError(f"preprocess_cfg.{key} {value!r} is none of {', '.join(known)}")
        fill = given.get("fill_color", 0)
        if isinstance(fill, bool) or not isinstance(fill, int) or not 0 <= fill <= 255:
            raise UserError(f"preprocess_cfg.fill_color {fill!r} must be an integer from 0 to 255")
        return cls(mean, std, interpolation, resize_mode, fill)

    def as_cfg(self) -> dict[str, Any]:
        """The `preprocess_cfg` that `of` reads back."""
        return asdict(self)

    def fit(self, image: Tensor, size: int) -> Tensor:
        """(3, H, W) uint8 -> (3, size, size) uint8: the image of the model in evaluation."""
        if self.resize_mode == "squash":
            return self._resized(image, (size, size))
        if self.resize_mode == "shortest":
            if self.interpolation == "bilinear":
                # `center` does not resize a second time what has its size already.
                image = self._resized(image, shorter_side(image, size))
            return center(image, size)
        height, width = image.shape[-2:]
        ratio = max(height, width) / size
        target = (max(1, round(height / ratio)), max(1, round(width / ratio)))
        rows = size - target[0]
        columns = size - target[1]
        # Of an odd number of rows or columns, one more goes to the bottom or the right.
        padding = (columns // 2, (columns + 1) // 2, rows // 2, (rows + 1) // 2)
        return F.pad(self._resized(image, target), padding, value=self.fill_color)

    def _resized(self, image: Tensor, target: tuple[int, int]) -> Tensor:
        """(3, H, W) uint8 -> (3, *target) uint8"""
        if self.interpolation != "bilinear":
            return _bicubic(image, target)
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        picture = picture.resize((target[1], target[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> float32, normalized."""
        return normalize(image, self.mean, self.std)


def shorter_side(image: Tensor, size: int) -> tuple[int, int]:
    """(height, width) with the shorter side of `size`; the longer one is rounded down, as by
    torchvision's Resize."""
    height, width = image.shape[-2:]
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def center(image: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size) uint8: resize the shorter side to `size`, crop the
    middle."""
    target = shorter_side(image, size)
    resized = _bicubic(image, target)
    # Halves are rounded to even, as torchvision's CenterCrop does.
    top = round((target[0] - size) / 2)
    left = round((target[1] - size) / 2)
    return resized[:, top : top + size, left : left + size]


def _bicubic(image: Tensor, target: tuple[int, int]) -> Tensor:
    out = torch.empty((3, *target), dtype=torch.uint8)
    resize(packed(image), target, out)
    return out


def normalize(
    image: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Tensor:
    """(B, 3, H, W) uint8 on any device -> float32 with zero mean and unit variance over natural
    images."""
    scale = torch.tensor([255.0 * s for s in std], device=image.device).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=image.device)
    return (image.float() / scale).sub_(shift.view(1, 3, 1, 1))  # in a new tensor: not in `image`


def _channels(key: str, value: Any) -> tuple[float, float, float]:
    """Three numbers. As in open_clip, one number stands for all channels. Raises UserError."""
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    numbers = []
    for number in values:
        # `abs(...) < 1e6` is False for NaN, and bool is an int in Python.
        if isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e6:
            numbers.append(float(number))
    if len(values) != 3 or len(numbers) != 3:
        raise UserError(f"preprocess_cfg.{key} {value!r} must be three numbers")
    red, green, blue = numbers
    return red, green, blue
