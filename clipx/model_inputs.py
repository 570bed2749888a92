"""What `Encoder` takes: one or many pictures or texts, of any of the usual types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipx.data import decode
from clipx.data.sample_files import read_image_file
from clipx.types import UserError

T = TypeVar("T")
Picture = Image.Image | np.ndarray | Tensor | str | Path | bytes
"""A Pillow image; an array (H, W, 3), (H, W, 4) or (H, W) uint8; a tensor (3, H, W) uint8; the path
of an image file; or the bytes of one."""
Pictures = Picture | Iterable[Picture]
Texts = str | Iterable[str]
CHANNELS = (1, 3, 4)
DTYPES = ("float32", "bfloat16", "float16")
_KINDS = "a path, bytes of an image file, a Pillow image, an array or a tensor"


def pictures_of(images: Pictures) -> Iterable[Picture]:
    """The pictures of an argument that may be a single one. Raises UserError."""
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    if isinstance(images, Tensor):
        return [images] if images.ndim == 3 else images
    if isinstance(images, np.ndarray):
        if images.dtype.kind in "UO":  # of paths, or of pictures of several sizes
            return images.ravel().tolist()
        is_single = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in CHANNELS)
        if is_single or images.ndim < 3:
            return [images]
        if images.ndim == 3:
            raise UserError(
                f"an array of shape {images.shape} is neither an image (H, W, 3) nor a stack of "
                "images (N, H, W, 3): transpose it, or give a tensor (3, H, W)"
            )
        return images
    if not isinstance(images, Iterable):
        raise UserError(f"images must be {_KINDS}, or several, not {type(images).__name__}")
    return images


def texts_of(texts: Texts) -> Iterable[str]:
    """The texts of an argument that may be a single one. Raises UserError."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise UserError(f"texts must be a str, or several, not {type(texts).__name__}")
    return texts


def pixels_of(picture: Any, max_image_pixels: int, exif_orientation: bool) -> Tensor:
    """(3, H, W) uint8. Raises UserError.

    picture: a Picture; exif_orientation: see `decode`
    """
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
            raise UserError(
                "an image tensor must be (3, H, W) uint8, "
                f"not {tuple(picture.shape)} {picture.dtype}"
            )
        return picture
    if isinstance(picture, Image.Image):
        try:
            return decode.pixels_of(picture, exif_orientation=exif_orientation)
        except decode.BadImage as error:
            raise UserError(f"a Pillow image of mode {picture.mode}: {error}") from error
    if isinstance(picture, np.ndarray):
        return _pixels_of_array(picture)
    if not isinstance(picture, str | Path | bytes):
        raise UserError(f"an image must be {_KINDS}, not {type(picture).__name__}")
    is_path = not isinstance(picture, bytes)
    name = f"image {picture}" if is_path else f"{len(picture):,} bytes"
    try:
        data = read_image_file(picture, decode.MAX_BYTES) if is_path else picture
        return decode.decode(data, max_pixels=max_image_pixels, exif_orientation=exif_orientation)
    except decode.BadImage as error:
        is_large = isinstance(error, decode.TooLarge) and error.setting == "max_image_pixels"
        remedy = "; raise max_image_pixels" if is_large else ""
        raise UserError(f"{name}: {error}{remedy}") from error
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        is_url = str(picture).startswith(("http://", "https://"))
        remedy = "; download it first, and give its bytes" if is_url else ""
        raise UserError(f"{name} cannot be read: {reason}{remedy}") from error


def _pixels_of_array(array: np.ndarray) -> Tensor:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS)
    if array.dtype != np.uint8 or not is_image or 0 in array.shape:
        is_float = array.dtype.kind == "f"
        remedy = "; of floats in [0, 1], give (255 * x).round().astype('uint8')" if is_float else ""
        raise UserError(
            "an image array must be (H, W, 3), (H, W, 4) or (H, W) uint8, "
            f"not {array.shape} {array.dtype}{remedy}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return decode.pixels_of(Image.fromarray(array))


def name_of(item: object, number: int) -> str:
    """A picture or text for messages. number: its place among all that were given"""
    return str(item) if isinstance(item, str | Path) else f"number {number}"


def batches(items: Iterable[T], batch_size: int) -> Iterator[list[T]]:
    """Lists of at most `batch_size` items, read when they are needed. Raises UserError."""
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} is below 1")
    iterator = iter(items)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def embeddings_of(value: object, width: int) -> Tensor | None:
    """(N, width) float32 of unit norm if the value holds embeddings, which are floats; None for
    anything else. Raises UserError for floats of another shape."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if value.ndim != 2 or value.shape[1] != width:
        raise UserError(f"embeddings of this model are (N, {width}), not {tuple(value.shape)}")
    return F.normalize(value.detach().cpu().float(), dim=1)


def device_of(device: torch.device | str) -> torch.device:
    """Raises UserError for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:0") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device}: {torch.cuda.device_count()} CUDA devices are visible; use "
            "device='auto', or check the driver"
        )
    return found


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """Raises UserError for one in which the towers do not run."""
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return getattr(torch, dtype)
