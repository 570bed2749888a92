"""A trained model for use: pictures and sentences in, unit vectors out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from clipx.checkpoints import format as checkpoints
from clipx.data import decode
from clipx.data.preprocessing import Preprocessing
from clipx.data.sample_files import read_image_file
from clipx.data.tokenizers import Tokenizer, build_tokenizer, pad
from clipx.metrics.embedding import not_unit
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.hub import HUB, LOCAL
from clipx.models.huggingface import is_transformers, load_transformers
from clipx.models.initial import checkpoint, pretrained
from clipx.models.model_json import context_length, fixed_text_length, image_size
from clipx.types import EmbeddingError, UserError

Picture = Image.Image | Tensor | str | Path
OPEN_CLIP = "open_clip:"
# Texts whose embeddings are part of a digest: case, digits, punctuation, other scripts, a long one.
PROBES = ("a photo of a cat", "Two RED cars, 1998!", "x", "naïve café – 東京", "word " * 200)


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

    @property
    def logit_scale(self) -> float:
        """The learned inverse temperature, by which cosines become logits."""
        scale = self.model.logit_scale.exp().item()
        # The towers may be sound where this one parameter is not, and no feature would show it.
        if not math.isfinite(scale):
            raise UserError(f"logit_scale is {scale}: the weights of {self.source} are damaged")
        return scale

    def encode_image(
        self,
        images: Picture | Sequence[Picture],
        *,
        batch_size: int = 256,
        max_image_pixels: int = decode.MAX_PIXELS,
    ) -> Tensor:
        """(N, D) float32 of unit norm, on the CPU.

        images: a Pillow image, a path, a (3, H, W) uint8 tensor, a sequence of these, or a (N, 3,
            H, W) uint8 tensor
        max_image_pixels: of a file; a larger one is an error
        """
        if isinstance(images, str | Path | Image.Image) or (
            isinstance(images, Tensor) and images.ndim == 3
        ):
            images = [images]
        features = [torch.empty(0, self.embed_dim)]  # no images give (0, D)
        for start in range(0, len(images), batch_size):
            fitted = []
            names = []
            for number, picture in enumerate(images[start : start + batch_size], start):
                fitted.append(self.fit(_to_pixels(picture, max_image_pixels)))
                is_file = isinstance(picture, str | Path)
                names.append(str(picture) if is_file else f"number {number}")
            # Pixels travel to the device as uint8, and features leave it batch by batch: those of
            # a large set would fill it.
            pixels = self.preprocessing(torch.stack(fitted).to(self.device))
            with self._inference():
                rows = self.model.encode_image(pixels).cpu()
            self._check("image", rows, names)
            features.append(rows)
        return torch.cat(features)

    def fit(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (3, image_size, image_size) uint8: the model's view of an image. One
        of that size is returned unchanged."""
        return self.preprocessing.fit(image, self.image_size)

    def encode_text(self, texts: str | Sequence[str], *, batch_size: int = 1024) -> Tensor:
        """(N, D) float32 of unit norm, on the CPU."""
        texts = [texts] if isinstance(texts, str) else texts
        features = [torch.empty(0, self.embed_dim)]
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            ids = [self.tokenizer.encode(text, self.context_length) for text in batch]
            tokens = pad(ids, self.tokenizer.pad_id, self.pad_to).to(self.device)
            with self._inference():
                rows = self.model.encode_text(tokens).cpu()
            self._check("text", rows, list(map(repr, batch)))
            features.append(rows)
        return torch.cat(features)

    def text_digest(self) -> str:
        """Different for two models whose text embeddings differ."""
        # Weights do not determine what a tower computes: its activation may stand in the model JSON
        # or in a transformers config, and its words in the tokenizer's files.
        settings = [self._text_settings, self.tokenizer.state, str(self.dtype), self.device.type]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        parts = self.model.text.state_dict()
        # Last, so that a difference which none of the above has still shows.
        parts[""] = self.encode_text(PROBES)
        for name, tensor in parts.items():
            digest.update(name.encode())
            # As bytes, because NumPy has no bfloat16.
            values = tensor.detach().cpu().flatten().contiguous()
            digest.update(values.view(torch.uint8).numpy())
        return digest.hexdigest()

    def _check(self, kind: Literal["image", "text"], features: Tensor, names: list[str]) -> None:
        """Raise EmbeddingError with the samples and a likely cause if rows are not of unit norm."""
        wrong = not_unit(features)
        if not wrong:
            return
        prefix = "visual" if kind == "image" else "text"
        tower = self.model.get_submodule(prefix)
        tensors = dict(tower.named_parameters()) | dict(tower.named_buffers())
        # A damaged checkpoint is more likely than an overflow, and its parameter can be named.
        damaged = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if damaged:
            reason = f"{len(damaged)} parameters are not finite, first {prefix}.{damaged[0]}"
        else:
            dtype = str(self.dtype).removeprefix("torch.")
            reason = (
                f"all parameters of {prefix} are finite, so the tower gives zeros or overflows in "
                f"{dtype}"
            )
        raise EmbeddingError(kind, wrong, names, f"{reason} ({self.source or 'this model'})")

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluation mode without a graph. The model's own mode is restored: training continues
        after an evaluation, also after one that failed."""
        was_training = self.model.training
        self.model.eval()
        # Weights stay float32; autocast is what `dtype` selects, in training as here.
        is_mixed = self.dtype != torch.float32
        autocast = torch.autocast(self.device.type, self.dtype if is_mixed else None, is_mixed)
        try:
            with torch.inference_mode(), autocast:
                yield
        finally:
            self.model.train(was_training)


def _to_pixels(picture: Picture, max_image_pixels: int) -> Tensor:
    """(3, H, W) uint8. Raises UserError."""
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
            raise UserError(
                "an image tensor must be (3, H, W) uint8, "
                f"not {tuple(picture.shape)} {picture.dtype}"
            )
        return picture
    if isinstance(picture, Image.Image):
        return decode.pixels_of(picture)
    try:
        data = read_image_file(picture, decode.MAX_BYTES)
        return decode.decode(data, max_pixels=max_image_pixels)
    except decode.BadImage as error:
        is_large = isinstance(error, decode.TooLarge) and error.setting == "max_image_pixels"
        remedy = "; raise max_image_pixels" if is_large else ""
        raise UserError(f"image {picture}: {error}{remedy}") from error
    except OSError as error:
        raise UserError(f"image {picture} cannot be read: {error.strerror or error}") from error


def load(
    model: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    averaged: bool = True,
) -> Encoder:
    """A trained model to embed with. Raises UserError.

    model: a run folder (its newest valid checkpoint), a checkpoint,
        `open_clip:ARCHITECTURE/TAG` or `open_clip:ARCHITECTURE/FILE`, `local-dir:FOLDER` or
        `hf-hub:ORGANIZATION/REPOSITORY` in open_clip's layout, or a folder with a CLIPModel or
        SiglipModel of transformers
    averaged: the averaged weights of a run with `ema`
    """
    name = str(model)
    folder = Path(model)
    # Prefixes first: a folder may have any name but these.
    if name.startswith((OPEN_CLIP, LOCAL, HUB)):
        towers, model_json = _load_published(name)
    elif is_transformers(folder):
        towers, model_json = load_transformers(folder)
    else:
        towers, model_json, state = checkpoints.load_model(folder, averaged=averaged)
        name = f"{folder} at step {state.step:,}, {state.position:,} samples seen"
    return Encoder(towers, model_json, device=device, dtype=dtype, source=name)


def _load_published(name: str) -> tuple[DualEncoder, dict[str, Any]]:
    """The model of a name with one of the prefixes, and its model JSON."""
    config = ModelConfig(name=name, initial=checkpoint.Config(name))
    if name.startswith(OPEN_CLIP):
        architecture, _, tag = name.removeprefix(OPEN_CLIP).partition("/")
        if not tag:
            raise UserError(
                f"{name} names no weights; write open_clip:ARCHITECTURE/TAG, for example "
                "open_clip:ViT-B-32/laion2b_s34b_b79k"
            )
        is_file = Path(tag).is_file()
        initial = checkpoint.Config(tag) if is_file else pretrained.Config(tag)
        config = ModelConfig(name=architecture, initial=initial)
    model_json = config.read()
    weights = config.build_initial()
    assert weights is not None, "the config names weights"
    weights.prepare()
    model = DualEncoder(model_json)
    weights.load(model)
    return model.eval(), model_json
