"""A trained model for use: pictures and sentences in, unit vectors out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from clipx import encoding, model_inputs
from clipx.checkpoints import format as checkpoints
from clipx.data import decode
from clipx.data.preprocessing import Preprocessing
from clipx.data.tokenizers import Tokenizer, build_tokenizer, pad
from clipx.encoding import ImageOptions, OnError, Options, Output
from clipx.model_inputs import Picture, Pictures, Texts
from clipx.models.dual_encoder import DualEncoder
from clipx.models.hub import PREFIXES
from clipx.models.huggingface import load_transformers
from clipx.models.model_json import context_length, fixed_text_length, image_size
from clipx.models.published import load_published
from clipx.models.transformers_config import is_transformers
from clipx.types import UserError


class Encoder:
    """Both towers with their preprocessing.

    dtype: of matrix products; features are float32 and of unit norm for any
    source: where the model came from, for titles and errors
    """

    def __init__(
        self,
        model: DualEncoder,
        model_json: dict[str, Any],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        source: str = "",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.source = source
        self.model = model.to(self.device)
        self.tokenizer: Tokenizer = build_tokenizer(model_json["text_cfg"])
        self.embed_dim: int = model_json["embed_dim"]
        self.context_length = context_length(model_json)
        self.pad_to = fixed_text_length(model_json)
        self.preprocessing = Preprocessing.of(model_json)
        self.image_size = image_size(model_json)
        # All settings of the text tower, at any level of the JSON: quick_gelu is at the top.
        self._text_settings = dict(model_json)
        for of_images in ("vision_cfg", "preprocess_cfg"):
            self._text_settings.pop(of_images, None)

    def __repr__(self) -> str:
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"Encoder({self.source or 'a model'}: {num_parameters / 1e6:,.1f} M parameters, D = "
            f"{self.embed_dim}, {self.image_size} px, {self.context_length} tokens, {dtype} on "
            f"{self.device})"
        )

    @property
    def scale(self) -> float:
        """The factor that turns cosines into logits: exp of the parameter `logit_scale`, the
        inverse of the temperature. Raises UserError if it is not finite."""
        scale = self.model.logit_scale.exp().item()
        # The towers may be sound where this one parameter is not, and no feature would show it.
        if not math.isfinite(scale):
            raise UserError(f"scale is {scale}: the weights of {self.source} are damaged")
        return scale

    @property
    def temperature(self) -> float:
        """1 / scale. Raises UserError if the scale is not finite."""
        return 1 / self.scale

    @overload
    def encode_image(  # type: ignore[inconsistent-overload]
        self, images: Pictures, *, output: Literal["torch"] = ..., **options: Unpack[ImageOptions]
    ) -> Tensor: ...

    @overload
    def encode_image(  # type: ignore[inconsistent-overload]
        self, images: Pictures, *, output: Literal["numpy"], **options: Unpack[ImageOptions]
    ) -> np.ndarray: ...

    def encode_image(
        self,
        images: Pictures,
        *,
        batch_size: int = 256,
        progress: bool = False,
        on_error: OnError = "raise",
        output: Output = "torch",
        max_image_pixels: int = decode.MAX_PIXELS,
        exif_orientation: bool = True,
    ) -> Tensor | np.ndarray:
        """(N, D) float32 of unit norm, on the CPU.

        images: one or several, also from a generator: a path, the bytes of an image file, a Pillow
            image, an array (H, W, 3), (H, W, 4) or (H, W) uint8, a tensor (3, H, W) uint8; or a
            stack of equally large ones, (N, H, W, 3) or (N, 3, H, W)
        batch_size: images that are in memory and on the device at once
        progress: show the number of embedded images on stderr
        on_error: for an image that cannot be read. `raise` raises UserError. `skip` gives it a row
            of NaN, so that row i always belongs to image i, and warns once with the reasons;
            `~rows.isnan().any(1)` selects the others
        output: a Tensor or a NumPy array
        max_image_pixels: of a file, width x height; a larger one is an error
        exif_orientation: turn files and Pillow images by their EXIF tag; False: pixels as stored

        Raises UserError for bad arguments, and EmbeddingError, also with `skip`, if the model gives
        rows that are not of unit norm.
        """

        def prepare(picture: Picture) -> Tensor:
            return self.fit(model_inputs.pixels_of(picture, max_image_pixels, exif_orientation))

        def embed(fitted: list[Tensor], names: list[str]) -> Tensor:
            # Pixels travel as uint8. Features leave the device, which those of many would fill.
            pixels = self.preprocessing(torch.stack(fitted).to(self.device))
            with encoding.inference(self.model, self.device, self.dtype):
                rows = self.model.encode_image(pixels).cpu()
            encoding.check_rows("image", rows, names, self.model, self.dtype, self.source)
            return rows

        options = Options(batch_size=batch_size, progress=progress, on_error=on_error)
        items = model_inputs.pictures_of(images)
        return encoding.encode_rows(
            "image", items, prepare, embed, width=self.embed_dim, output=output, **options
        )

    def fit(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (3, image_size, image_size) uint8: the model's view of an image. One
        of that size is returned unchanged."""
        return self.preprocessing.fit(image, self.image_size)

    @overload
    def encode_text(  # type: ignore[inconsistent-overload]
        self, texts: Texts, *, output: Literal["torch"] = ..., **options: Unpack[Options]
    ) -> Tensor: ...

    @overload
    def encode_text(  # type: ignore[inconsistent-overload]
        self, texts: Texts, *, output: Literal["numpy"], **options: Unpack[Options]
    ) -> np.ndarray: ...

    def encode_text(
        self,
        texts: Texts,
        *,
        batch_size: int = 1024,
        progress: bool = False,
        on_error: OnError = "raise",
        output: Output = "torch",
    ) -> Tensor | np.ndarray:
        """(N, D) float32 of unit norm, on the CPU. Texts of more than `context_length` tokens are
        cut.

        texts: one or several, also from a generator
        batch_size, progress, output: as for `encode_image`
        on_error: as for `encode_image`, for an item that is not a str, such as a missing caption

        Raises UserError and EmbeddingError as `encode_image`.
        """

        def prepare(text: object) -> list[int]:
            if not isinstance(text, str):
                raise UserError(f"a text must be a str, not {text!r}")
            return self.tokenizer.encode(text, self.context_length)

        def embed(ids: list[list[int]], names: list[str]) -> Tensor:
            tokens = pad(ids, self.tokenizer.pad_id, self.pad_to).to(self.device)
            with encoding.inference(self.model, self.device, self.dtype):
                rows = self.model.encode_text(tokens).cpu()
            encoding.check_rows("text", rows, names, self.model, self.dtype, self.source)
            return rows

        options = Options(batch_size=batch_size, progress=progress, on_error=on_error)
        items = model_inputs.texts_of(texts)
        return encoding.encode_rows(
            "text", items, prepare, embed, width=self.embed_dim, output=output, **options
        )

    def similarity(
        self,
        images: Pictures | Tensor | np.ndarray,
        texts: Texts | Tensor | np.ndarray,
    ) -> Tensor:
        """(N, M) float32 cosines in [-1, 1], on the CPU; times `scale` they are logits.

        images: as for `encode_image`, or embeddings, (N, D) of floats
        texts: as for `encode_text`, or embeddings, (M, D) of floats; those of images are fine too
        Raises UserError and EmbeddingError as `encode_image`.
        """
        rows = model_inputs.embeddings_of(images, self.embed_dim)
        if rows is None:
            rows = self.encode_image(images)
        columns = model_inputs.embeddings_of(texts, self.embed_dim)
        if columns is None:
            columns = self.encode_text(texts)  # type: ignore[bad-argument-type]
        return rows @ columns.T

    def text_digest(self) -> str:
        """Different for two models whose text embeddings differ."""
        # Weights do not determine what a tower computes: its activation may stand in the model JSON
        # or in a transformers config, and its words in the tokenizer's files.
        settings = [self._text_settings, self.tokenizer.state, str(self.dtype), self.device.type]
        parts = self.model.text.state_dict()
        # Last, so that a difference which none of the above has still shows.
        parts[""] = self.encode_text(encoding.PROBES)
        return encoding.digest_of(settings, parts)


def load(
    model: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    averaged: bool = True,
) -> Encoder:
    """A trained model to embed with. Raises UserError.

    model: a run folder (its newest valid checkpoint), a checkpoint, `open_clip:ARCHITECTURE/TAG` or
        `open_clip:ARCHITECTURE/FILE`, `local-dir:FOLDER` or `hf-hub:ORGANIZATION/REPOSITORY` in
        open_clip's layout, or a folder with a CLIPModel or SiglipModel of transformers
    device: `auto` is a CUDA device if one is visible, else the CPU
    dtype: of matrix products: float32, bfloat16 or float16; weights and features stay float32
    averaged: the averaged weights of a run with `ema`
    """
    name = str(model)
    folder = Path(model)
    device = model_inputs.device_of(device)
    dtype = model_inputs.dtype_of(dtype)
    # Prefixes first: a folder may have any name but these.
    if name.startswith(PREFIXES):
        towers, model_json = load_published(name)
    elif is_transformers(folder):
        towers, model_json = load_transformers(folder)
    else:
        towers, model_json, state = checkpoints.load_model(folder, averaged=averaged)
        name = f"{folder} at step {state.step:,}, {state.position:,} samples seen"
    return Encoder(towers, model_json, device=device, dtype=dtype, source=name)
