"""Work that is shared out over ranks, such that a fault of one ends the evaluation on all: none is
left waiting for one that gave up."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from clipx.types import Encoder, Ranks, Setting, UserError

T = TypeVar("T")
BATCH = 64
"""Images that are embedded at a time. Rank r of R embeds batches r, r + R ...: whole batches, so
that every number of ranks computes the same products and gets the same bits."""


def together(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """[what `work` returns on rank 0, on rank 1, ...]. A fault of any rank is raised on all."""
    if ranks.world_size == 1:
        return [work()]
    value: T | None = None
    fault: tuple[bool, str] | None = None
    try:
        value = work()
    except UserError as error:
        fault = (True, str(error))
    except Exception:  # noqa: BLE001  told in full, on all ranks
        fault = (False, traceback.format_exc())
    answers: list[tuple[tuple[bool, str] | None, T]] = ranks.gather((fault, value))
    for rank, (found, _) in enumerate(answers):
        if found is not None and found[0]:
            raise UserError(found[1])
        if found is not None:
            raise RuntimeError(f"rank {rank} failed:\n{found[1]}")
    return [answer for _, answer in answers]


def main_only(ranks: Ranks, work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on all ranks."""
    return together(ranks, lambda: work() if ranks.rank == 0 else None)[0]  # type: ignore[return-value]


def shared_out(ranks: Ranks, count: int, work: Callable[[int], T]) -> list[T]:
    """[work(0), work(1) ... work(count - 1)], each done by one rank, on all ranks."""
    mine = range(ranks.rank, count, ranks.world_size)
    parts = together(ranks, lambda: [work(number) for number in mine])
    return [parts[n % ranks.world_size][n // ranks.world_size] for n in range(count)]


def embed_images(
    encoder: Encoder, image: Callable[[int], Tensor], count: int, setting: Setting
) -> Tensor:
    """(count, D) features of image(0), image(1) ..., each (3, H, W) uint8."""

    def embed(batch: int) -> Tensor:
        rows = range(batch * BATCH, min((batch + 1) * BATCH, count))
        features = encoder.encode_image([image(row) for row in rows])
        setting.progress(rows.stop, count)
        return features

    return torch.cat(shared_out(setting.ranks, -(-count // BATCH), embed))


def embed_texts(
    encoder: Encoder, texts: Sequence[str], setting: Setting, *, batch: int = 512
) -> Tensor:
    """(count, D) features."""

    def embed(number: int) -> Tensor:
        return encoder.encode_text(list(texts[number * batch : (number + 1) * batch]))

    return torch.cat(shared_out(setting.ranks, -(-len(texts) // batch), embed))
