"""Work that is shared out over ranks in rounds, after each of which all of them talk.

What a rank brings to a round is a value or a fault, and all see what all brought. So a fault of one
rank, wherever it came up, ends the evaluator on all of them after the same round, and none is left
waiting for one that gave up.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from clipx.evaluators._undecodable import Reader
from clipx.metrics.embedding import not_unit
from clipx.types import EmbeddingError, Encoder, Ranks, Setting, UserError

T = TypeVar("T")
BATCH = 64
"""Images that are embedded at a time. Rank r of R embeds batches r, r + R ...: whole batches, so
that every number of ranks computes the same products and gets the same bits."""
PIECES = 8
"""Of shared work that a rank does in a round: a second or two of images, after which it hears of
faults and of requests to stop."""


class Known(Exception):
    """A fault that all ranks have heard of. Whoever meets it leaves without a further round."""


class KnownMistake(Known, UserError):
    """The user's."""


class KnownFault(Known, RuntimeError):
    """With its traceback on the rank where it came up."""


def together(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """A round: [what `work` returns on rank 0, on rank 1, ...]. A fault of any rank is raised on
    all, as Known where there are several."""
    if ranks.world_size == 1:
        return ranks.gather(work())
    value: T | None = None
    fault: tuple[bool, str] | None = None
    try:
        value = work()
    except Known:
        raise
    except UserError as error:
        fault = (True, str(error))
    except Exception:  # noqa: BLE001  told in full, on all ranks
        fault = (False, traceback.format_exc())
    answers: list[tuple[tuple[bool, str] | None, T]] = ranks.gather((fault, value))
    for rank, (found, _) in enumerate(answers):
        if found is not None and found[0]:
            raise KnownMistake(found[1])
        if found is not None:
            raise KnownFault(f"rank {rank} failed:\n{found[1]}")
    return [answer for _, answer in answers]


def alike(ranks: Ranks, work: Callable[[], T]) -> T:
    """What `work` returns here, which is the same on all ranks. It may have rounds in it: one that
    fails between two of them brings its fault to the round in which the others are."""
    done: list[T] = []
    together(ranks, lambda: done.append(work()))
    return done[0]


def main_only(ranks: Ranks, work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on all ranks."""
    return together(ranks, lambda: work() if ranks.rank == 0 else None)[0]  # type: ignore[return-value]


def shared_out(ranks: Ranks, count: int, work: Callable[[int], T]) -> list[T]:
    """[work(0), work(1) ... work(count - 1)], each done by one rank, on all ranks."""
    done: list[T] = []
    size, per_round = ranks.world_size, PIECES * ranks.world_size
    for first in range(0, count, per_round):
        numbers = range(first, min(first + per_round, count))
        mine = numbers[ranks.rank :: size]
        parts = together(ranks, lambda mine=mine: (count, [work(number) for number in mine]))
        if len({theirs for theirs, _ in parts}) > 1:
            each = ", ".join(f"{theirs} on rank {rank}" for rank, (theirs, _) in enumerate(parts))
            raise KnownMistake(
                f"ranks have read test sets of different sizes, in batches: {each}; "
                "every machine needs the same files"
            )
        done += [parts[n % size][1][(n - first) // size] for n in numbers]
    return done


def embed_images(
    encoder: Encoder,
    image: Callable[[int], Tensor],
    names: Sequence[str],
    setting: Setting,
) -> Tensor:
    """(N, D) features of image(0), image(1) ..., each (3, H, W) uint8. Equal images have equal
    features, bit by bit. Raises EmbeddingError.

    names: N, of the images, for errors
    """
    count = len(names)
    read = Reader(image, encoder.image_size)

    def embed(batch: int) -> Tensor:
        rows = list(range(batch * BATCH, min((batch + 1) * BATCH, count)))
        stop = rows[-1] + 1
        num_rows = len(rows)
        images = [read(row) for row in rows]
        if count > BATCH:
            # A last batch of two would be computed by other kernels, and differ by rounding.
            rows += rows[-1:] * (BATCH - num_rows)
            images += images[-1:] * (BATCH - num_rows)
        here = [names[row] for row in rows]
        features = _checked("image", here, lambda: encoder.encode_image(images))[:num_rows]
        setting.progress(stop, count)
        return features

    features = torch.cat(shared_out(setting.ranks, -(-count // BATCH), embed))
    read.report(together(setting.ranks, lambda: read.undecodable), count, setting)
    return features


def embed_texts(
    encoder: Encoder, texts: Sequence[str], setting: Setting, *, batch: int = 512
) -> Tensor:
    """(count, D) features. Equal texts have equal features, bit by bit: each is embedded once.
    Raises EmbeddingError."""
    number_of = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    distinct = list(number_of)

    def embed(number: int) -> Tensor:
        return checked_texts(encoder, distinct[number * batch : (number + 1) * batch])

    features = torch.cat(shared_out(setting.ranks, -(-len(distinct) // batch), embed))
    return features[[number_of[text] for text in texts]]


def checked_texts(encoder: Encoder, texts: list[str]) -> Tensor:
    """(len(texts), D) features. Raises EmbeddingError."""
    return _checked("text", [repr(text) for text in texts], lambda: encoder.encode_text(texts))


def _checked(what: str, names: Sequence[str], embed: Callable[[], Tensor]) -> Tensor:
    """The rows that `embed` returns, or an error with these names: a score of rows that are not
    finite is a number too, and a plausible one."""
    try:
        features = embed()
    except EmbeddingError as error:
        raise EmbeddingError(what, error.rows, names, error.reason) from error
    if wrong := not_unit(features):
        raise EmbeddingError(what, wrong, names, "every score needs unit rows")
    return features
