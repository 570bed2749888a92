"""Teachers for distillation: any model of `clipx.embed.load`, frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipx.data.tokenizers import build_tokenizer
from clipx.distributed.runtime import Runtime
from clipx.embed import Encoder, load
from clipx.models.model_json import context_length
from clipx.objectives.teacher import Teacher
from clipx.search.embeddings import model_digest
from clipx.training.precision import autocast
from clipx.types import TeacherInfo, UserError


def load_teacher(
    name: str, *, student: dict[str, Any], runtime: Runtime, dtype: torch.dtype
) -> Teacher:
    """Load a teacher on this rank's device. All ranks take part. Raises UserError if it cannot take
    the student's token ids.

    student: model JSON; dtype: of matmuls
    """

    def load_frozen() -> Encoder:
        with torch.random.fork_rng():  # building a model draws weights
            encoder = load(name, device=runtime.device, dtype=dtype)
        encoder.model.eval().requires_grad_(False)
        return encoder

    encoder = runtime.main_first(load_frozen)
    _check_tokens(name, encoder, student)

    def encode_image(images: Tensor) -> Tensor:
        images = resized(images, encoder.image_size, encoder.preprocessing.interpolation)
        with torch.no_grad(), autocast(runtime.device, dtype):
            return encoder.model.encode_image(encoder.preprocessing(images))

    def encode_text(tokens: Tensor) -> Tensor:
        if encoder.pad_to is not None:  # the student's captions may be cut to the longest
            missing = encoder.pad_to - tokens.shape[1]
            tokens = F.pad(tokens, (0, missing), value=encoder.tokenizer.pad_id)
        with torch.no_grad(), autocast(runtime.device, dtype):
            return encoder.model.encode_text(tokens)

    return Teacher(info_of(encoder), encode_image, encode_text)


def _check_tokens(name: str, encoder: Encoder, student: dict[str, Any]) -> None:
    """Raise UserError unless both models read captions alike."""
    remedy = (
        "the teacher gets the student's token ids; store the teacher's embeddings by "
        f"`clipx data reinforce CONFIG {name} --out DIR` and set objective.teacher=stored "
        "data.reinforced=DIR"
    )
    if build_tokenizer(student["text_cfg"]).state != encoder.tokenizer.state:
        raise UserError(f"objective.teacher {name} has another tokenizer than the model; {remedy}")
    length = context_length(student)
    if encoder.context_length != length:
        raise UserError(
            f"objective.teacher {name} has a context of {encoder.context_length} tokens, the model "
            f"one of {length}; {remedy}"
        )


def resized(images: Tensor, size: int, interpolation: str) -> Tensor:
    """(B, 3, S, S) uint8 on any device -> (B, 3, size, size), antialiased; float32 of whole numbers
    in [0, 255] if the size differs. open_clip evaluates `random` interpolation with bicubic."""
    if images.shape[-1] == size:
        return images
    mode = "bilinear" if interpolation == "bilinear" else "bicubic"
    out = F.interpolate(images.float(), size=(size, size), mode=mode, antialias=True)
    return out.round().clamp(0, 255)  # as Pillow, which resizes to uint8


def info_of(encoder: Encoder) -> TeacherInfo:
    return TeacherInfo(encoder.embed_dim, encoder.scale, model_digest(encoder), encoder.source)
