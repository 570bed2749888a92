"""Fit an image to a model's size and normalize it, as open_clip's evaluation transform does for the
`preprocess_cfg` of a model JSON."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clipx.config import build, config
from clipx.data.resize import packed, resize
from clipx.types import UserError

# OpenAI's CLIP statistics (arXiv:2103.00020), which open_clip uses by default
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
Mean = Annotated[float, Field(strict=True, gt=-1e6, lt=1e6)]
Deviation = Annotated[float, Field(strict=True, gt=0, lt=1e6)]


@config
class Preprocessing:
    """A model's `preprocess_cfg`."""

    mean: tuple[Mean, Mean, Mean] = MEAN
    """Of the channels of pixels in [0, 1]."""
    std: tuple[Deviation, Deviation, Deviation] = STD
    """As `mean`."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """Pillow's, with antialiasing. open_clip evaluates `random` with bicubic."""
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    """`shortest` resizes the shorter side and crops the middle; `longest` resizes the longer side
    and pads; `squash` resizes both sides."""
    fill_color: int = Field(default=0, strict=True, ge=0, le=255)
    """Of the padding."""

    @classmethod
    def of(cls, model_json: dict[str, Any]) -> Preprocessing:
        """The model JSON's `preprocess_cfg`, with open_clip's defaults. Raises UserError."""
        cfg = model_json.get("preprocess_cfg") or {}
        if not isinstance(cfg, dict):
            raise UserError(f"preprocess_cfg must be a mapping, not {cfg!r}")
        settings = {}
        for field in fields(cls):
            value = cfg.get(field.name)
            if value is None:  # null stands for the default, as in open_clip
                continue
            if field.name in ("mean", "std") and not isinstance(value, list | tuple):
                value = [value] * 3  # as in open_clip, one number for all channels
            settings[field.name] = value
        return build(cls, settings, where="preprocess_cfg")

    def fit(self, image: Tensor, size: int) -> Tensor:
        """(3, H, W) uint8 -> (3, size, size) uint8: the image of the model in evaluation."""
        if self.resize_mode == "squash":
            return self._resized(image, (size, size))
        if self.resize_mode == "shortest":
            if self.interpolation == "bilinear":
                # `center` does not resize a second time what has its size already.
                image = self._resized(image, shorter_side(image, size))
            return center(image, size)
        # The longer side gets `size`, the shorter one is padded.
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
