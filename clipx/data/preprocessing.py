"""A model's `preprocess_cfg` in open_clip's layout: how images are fitted to its size and
normalized. Every image comes out as open_clip's evaluation transform gives it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipx.data.resize import packed, resize
from clipx.data.transforms import MEAN, STD, center, normalize, shorter_side
from clipx.types import UserError

RESIZE_MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear", "random")  # open_clip evaluates `random` with bicubic


@dataclass(frozen=True)
class Preprocessing:
    """mean, std: of pixels in [0, 1], one a channel
    interpolation: with antialiasing, as Pillow has it
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
        """By the model JSON's `preprocess_cfg`; open_clip's defaults for what it does not have.
        Raises UserError."""
        cfg = model_json.get("preprocess_cfg") or {}
        if not isinstance(cfg, dict):
            raise UserError(f"preprocess_cfg must be a mapping, not {cfg!r}")
        given = {key: value for key, value in cfg.items() if value is not None}
        mean = _channels("mean", given.get("mean", MEAN))
        std = _channels("std", given.get("std", STD))
        if min(std) <= 0:
            raise UserError(f"preprocess_cfg.std {std} must be three positive standard deviations")
        fill = given.get("fill_color", 0)
        if isinstance(fill, bool) or not isinstance(fill, int) or not 0 <= fill <= 255:
            raise UserError(f"preprocess_cfg.fill_color {fill!r} must be an integer from 0 to 255")
        return cls(
            mean,
            std,
            _one_of("interpolation", given.get("interpolation", "bicubic"), INTERPOLATIONS),
            _one_of("resize_mode", given.get("resize_mode", "shortest"), RESIZE_MODES),
            fill,
        )

    def as_cfg(self) -> dict[str, Any]:
        """The `preprocess_cfg` that `of` reads back."""
        return asdict(self)

    def fit(self, image: Tensor, size: int) -> Tensor:
        """(3, H, W) uint8 -> (3, size, size) uint8: what the model sees in evaluation."""
        bilinear = self.interpolation == "bilinear"
        if self.resize_mode == "squash":
            return _resized(image, (size, size), bilinear=bilinear)
        if self.resize_mode == "longest":
            return self._longest(image, size, bilinear=bilinear)
        if not bilinear:
            return center(image, size)
        # `center` crops what has its size already without resizing it a second time.
        return center(_resized(image, shorter_side(image, size), bilinear=True), size)

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> float32, normalized."""
        return normalize(image, self.mean, self.std)

    def _longest(self, image: Tensor, size: int, *, bilinear: bool) -> Tensor:
        height, width = image.shape[-2:]
        ratio = max(height, width) / size
        target = (max(1, round(height / ratio)), max(1, round(width / ratio)))
        out = _resized(image, target, bilinear=bilinear)
        rows, columns = size - target[0], size - target[1]
        # An odd number of rows or columns: one more at the bottom or the right.
        padding = (columns // 2, (columns + 1) // 2, rows // 2, (rows + 1) // 2)
        return F.pad(out, padding, value=self.fill_color)


def _resized(image: Tensor, target: tuple[int, int], *, bilinear: bool) -> Tensor:
    """(3, H, W) uint8 -> (3, *target) uint8."""
    if not bilinear:
        out = torch.empty((3, *target), dtype=torch.uint8)
        resize(packed(image), target, out)
        return out
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    picture = picture.resize((target[1], target[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _channels(key: str, value: Any) -> tuple[float, float, float]:
    """Three numbers; open_clip takes one number for all channels too. Raises UserError."""
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e6 for v in values
    ):
        raise UserError(f"preprocess_cfg.{key} {value!r} must be three numbers")
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _one_of(key: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UserError(f"preprocess_cfg.{key} {value!r} is none of {', '.join(known)}")
    return value
