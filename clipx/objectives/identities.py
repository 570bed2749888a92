"""Random draws and ids of a row, as functions of its sample: equal on whichever rank computes
them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clipx.data.order import hash_of, mix, uniforms
from clipx.data.sample import key_hash
from clipx.types import Batch

_DRAWS_KEY = 0xD4A3  # separates these draws from those of the augmentation


def position_draws(seed: int, positions: Sequence[int], count: int) -> Tensor:
    """(B, count) float32 in [0, 1), a function of (seed, position)."""
    key = int(hash_of(seed, _DRAWS_KEY)[0])
    draws = uniforms(key, np.asarray(positions)[:, None], count).astype(np.float32)
    largest = np.float32(1 - 2**-24)  # rounding to float32 may give 1
    return torch.from_numpy(np.minimum(draws, largest))


def row_ids(batch: Batch, kinds: Sequence[str], *, pad_id: int) -> Tensor:
    """(B, K) int64, one column for each of `kinds` (caption, image, sample, label). Rows with the
    same caption, picture, sample of the corpus, or label have equal numbers.

    A picture's id is its sample key. A corpus that uses a key for several pictures, such as a
    number that starts anew in each shard, would mask true negatives.
    """
    columns = []
    for kind in kinds:
        if kind == "caption":
            columns.append(caption_ids(batch.views["text"], pad_id=pad_id))
        elif kind == "sample":
            columns.append(np.array(batch.samples, dtype=np.int64))
        elif kind == "label":
            columns.append(batch.views["label"].numpy())
        else:
            hashes = [key_hash(key) for key in batch.keys]
            columns.append(np.array(hashes, dtype=np.int64))
    return torch.from_numpy(np.stack(columns, axis=1))


def caption_ids(text: Tensor, *, pad_id: int) -> np.ndarray:
    """(B,) int64 hash of each caption. Padding does not change it, because each rank pads
    captions to its own longest.

    text: (B, T) token ids, or (B, width) float features of a locked tower
    """
    if text.is_floating_point():
        values = text.float().contiguous().view(torch.int32).numpy().astype(np.uint64)
        is_real = np.ones(values.shape, dtype=bool)
    else:
        values = text.numpy().astype(np.uint64)
        is_real = text.numpy() != pad_id
    # Each token is hashed together with its place, so that the order of words counts.
    place = mix(np.arange(values.shape[1]))
    with np.errstate(over="ignore"):
        # A sum does not depend on how many padding tokens follow. It wraps at 2^64.
        terms = np.where(is_real, mix(values ^ place), np.uint64(0))
        hashes = terms.sum(axis=1, dtype=np.uint64)
    return hashes.view(np.int64)
