"""The rows of a local batch as the step takes them: on the device, each with its draws and its
identities, all of them functions of the sample and not of where it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipx.data.loader import key_hash
from clipx.data.order import hash_of, mix, uniforms
from clipx.types import Batch

_DRAWS_KEY = 0xD4A3  # sets these draws apart from those of the augmentation


@dataclass(frozen=True)
class Rows:
    """image: (B, 3, H, W) uint8, or features; text: (B, T) int64, or features; draws: (B, draws of
    a sample) float32 or None"""

    image: Tensor
    text: Tensor
    draws: Tensor | None

    def __len__(self) -> int:
        return len(self.image)

    def split(self, size: int) -> list[Rows]:
        """Parts of `size` rows, the last of what is left."""
        return [self._slice(slice(n, n + size)) for n in range(0, len(self), size)]

    def _slice(self, part: slice) -> Rows:
        draws = None if self.draws is None else self.draws[part]
        return Rows(self.image[part], self.text[part], draws)


def rows_of(batch: Batch, *, seed: int, num_draws: int, device: torch.device) -> Rows:
    """The batch on the device."""
    draws = None
    if num_draws:
        draws = draws_of(seed, batch.positions, num_draws).to(device, non_blocking=True)
    image = batch.image.to(device, non_blocking=True)
    return Rows(image, batch.text.to(device, non_blocking=True), draws)


def draws_of(seed: int, positions: Sequence[int], count: int) -> Tensor:
    """(B, count) float32 in [0, 1), by (seed, position): the same whoever computes the sample."""
    key = int(hash_of(seed, _DRAWS_KEY)[0])
    drawn = uniforms(key, np.asarray(positions)[:, None], count).astype(np.float32)
    return torch.from_numpy(np.minimum(drawn, np.float32(1 - 2**-24)))  # rounding may give 1


def ids_of(batch: Batch, kinds: Sequence[str], *, pad_id: int) -> Tensor | None:
    """(B, K) int64, one column for each of `kinds` (caption, image): equal numbers say that two
    rows have the same caption, or the same picture. None without kinds.

    The same picture is the same sample key: keys that a corpus uses for several pictures, such as
    a number that starts anew in every shard, would hide true negatives.
    """
    if not kinds:
        return None
    columns = {
        "caption": lambda: caption_ids(batch.text, pad_id=pad_id),
        "image": lambda: np.array([key_hash(key) for key in batch.keys], dtype=np.int64),
    }
    return torch.from_numpy(np.stack([columns[kind]() for kind in kinds], axis=1))


def caption_ids(text: Tensor, *, pad_id: int) -> np.ndarray:
    """(B,) int64 hash of each caption, which padding does not change: ranks pad to the longest of
    their own rows.

    text: (B, T) token ids, or (B, width) float features of a locked tower
    """
    if text.is_floating_point():
        values = text.float().contiguous().view(torch.int32).numpy().astype(np.uint64)
        real = np.ones(values.shape, dtype=bool)
    else:
        values, real = text.numpy().astype(np.uint64), text.numpy() != pad_id
    place = mix(np.arange(values.shape[1]))
    with np.errstate(over="ignore"):
        hashes = np.where(real, mix(values ^ place), np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return hashes.view(np.int64)
