"""Many pictures or texts through a tower, batch by batch, to rows that are checked."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from clipx.metrics.embedding import not_unit
from clipx.model_inputs import batches, name_of
from clipx.progress import progress as show_progress
from clipx.progress import silent
from clipx.types import EmbeddingError, UserError

T = TypeVar("T")
Output = Literal["torch", "numpy"]
OnError = Literal["raise", "skip"]
NAMES_SHOWN = 5
# Texts whose embeddings are part of a digest: case, digits, punctuation, other scripts, a long one.
PROBES = ("a photo of a cat", "Two RED cars, 1998!", "x", "naïve café – 東京", "word " * 200)


class Options(TypedDict, total=False):
    """Of both `Encoder.encode_image` and `Encoder.encode_text`, which explain them."""

    batch_size: int
    progress: bool
    on_error: OnError


class ImageOptions(Options, total=False):
    """Of `Encoder.encode_image` alone."""

    max_image_pixels: int
    exif_orientation: bool


def encode_rows(
    kind: Literal["image", "text"],
    items: Iterable[Any],
    prepare: Callable[[Any], T],
    embed: Callable[[list[T], list[str]], Tensor],
    *,
    width: int,
    batch_size: int,
    progress: bool,
    on_error: OnError,
    output: Output,
) -> Tensor | np.ndarray:
    """(N, width) float32 for N items, NaN for skipped ones. Raises UserError.

    prepare: an item -> one input of the tower; raises UserError for an item that will not do
    embed: n inputs and their names -> (n, width) float32 on the CPU
    """
    if on_error not in ("raise", "skip"):
        raise UserError(f"on_error {on_error!r} is neither 'raise' nor 'skip'")
    if output not in ("torch", "numpy"):
        raise UserError(f"output {output!r} is neither 'torch' nor 'numpy'")
    features = [torch.empty(0, width)]  # no items give (0, width)
    reasons: list[str] = []
    done = 0
    # The number of a generator's items is not known.
    total = len(items) if isinstance(items, Sized) else None
    with (show_progress if progress else silent)(f"{kind}s", total) as advance:
        for batch in batches(items, batch_size):
            inputs = []
            names = []
            places = []
            for place, item in enumerate(batch):
                # Texts are shown whole: they have no other name.
                name = repr(item) if kind == "text" else name_of(item, done + place)
                try:
                    inputs.append(prepare(item))
                except UserError as error:
                    if on_error == "raise":
                        raise UserError(f"{kind}s[{done + place}]: {error}") from error
                    reasons.append(f"{kind}s[{done + place}]: {error}")
                    continue
                names.append(name)
                places.append(place)
            rows = torch.full((len(batch), width), math.nan)
            if inputs:
                rows[places] = embed(inputs, names)
            features.append(rows)
            done += len(batch)
            advance(len(batch))
    if reasons:
        shown = "; ".join(reasons[:NAMES_SHOWN])
        if len(reasons) > NAMES_SHOWN:
            shown += "; ..."
        text = f"{len(reasons)} of {done} {kind}s were skipped and have rows of NaN: {shown}"
        warnings.warn(text, stacklevel=3)  # at the line that has called the Encoder
    found = torch.cat(features)
    return found.numpy() if output == "numpy" else found


def check_rows(
    kind: Literal["image", "text"],
    rows: Tensor,
    names: list[str],
    model: nn.Module,
    dtype: torch.dtype,
    source: str,
) -> None:
    """Raise EmbeddingError with the samples and a likely cause if rows are not of unit norm.

    rows: (n, D); names: of the n samples; source: of the model, for the message
    """
    wrong = not_unit(rows)
    if not wrong:
        return
    prefix = "visual" if kind == "image" else "text"
    tower = model.get_submodule(prefix)
    tensors = dict(tower.named_parameters()) | dict(tower.named_buffers())
    # A damaged checkpoint is more likely than an overflow, and its parameter can be named.
    damaged = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if damaged:
        reason = f"{len(damaged)} parameters are not finite, first {prefix}.{damaged[0]}"
    else:
        reason = (
            f"all parameters of {prefix} are finite, so the tower gives zeros or overflows in "
            f"{str(dtype).removeprefix('torch.')}"
        )
    raise EmbeddingError(kind, wrong, names, f"{reason} ({source or 'this model'})")


@contextmanager
def inference(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Evaluation mode without a graph. The model's own mode is restored: training continues after
    an evaluation, also after one that failed."""
    was_training = model.training
    model.eval()
    # Weights stay float32; autocast is what `dtype` selects, in training as here.
    is_mixed = dtype != torch.float32
    autocast = torch.autocast(device.type, dtype if is_mixed else None, is_mixed)
    try:
        with torch.inference_mode(), autocast:
            yield
    finally:
        model.train(was_training)


def digest_of(settings: list[Any], tensors: dict[str, Any]) -> str:
    """SHA-256 of plain data and of tensors, bit by bit, in hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in tensors.items():
        digest.update(name.encode())
        # As bytes, because NumPy has no bfloat16.
        values = tensor.detach().cpu().flatten().contiguous()
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()
