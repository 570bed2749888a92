"""Evaluation shared among ranks: embed a whole test set on all of them, then compute.

`exchange` is the only collective of an evaluation. A rank that fails, or has to stop, makes
one last exchange and leaves. The other ranks get its message in the exchange that they are in or
reach next, and leave there too, so no rank waits for one that has gone.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from clipx.evaluators.test_sets import UndecodableImage, gray
from clipx.metrics.embedding import not_unit
from clipx.types import EmbeddingError, ImageTextEncoder, Result, Setting, StopRequested, UserError

T = TypeVar("T")
IMAGES_PER_BATCH = 64
TEXTS_PER_BATCH = 512
BATCHES_PER_EXCHANGE = 8  # per rank: a second or two, after which a rank learns of the others
MAX_UNDECODABLE = 0.01  # fraction of a set, beyond the first image


class Agreed(Exception):
    """Raised by `exchange` on all ranks at once: none of them needs another exchange."""


class AgreedStop(Agreed, StopRequested):
    """A rank has to stop."""


class AgreedUserError(Agreed, UserError):
    """A rank met a mistake of the user."""


class AgreedFailure(Agreed, RuntimeError):
    """A rank failed; the message has its traceback."""


def exchange(setting: Setting, value: T, error: Exception | None = None) -> list[T]:
    """The values of all ranks, in rank order. Raises an Agreed on all ranks if one has an error or
    has to stop."""
    fault: Agreed | None = None
    stop_reason = setting.stop_reason()
    if stop_reason is not None:
        fault = AgreedStop(stop_reason)
    elif isinstance(error, UserError):
        fault = AgreedUserError(str(error))
    elif error is not None:
        # As text, because the other ranks have neither the stack nor perhaps the exception's class.
        trace = "".join(traceback.format_exception(error))
        fault = AgreedFailure(f"rank {setting.ranks.rank} failed:\n{trace}")

    values = []
    for rank_fault, rank_value in setting.ranks.gather((fault, value)):
        if rank_fault is not None:
            raise rank_fault
        values.append(rank_value)
    return values


def on_main(setting: Setting, compute: Callable[..., T], *arguments: Any) -> T:
    """The result of `compute(*arguments)` on rank 0, for all ranks."""
    result: Any = None
    if setting.ranks.rank == 0:
        result = compute(*arguments)
    return exchange(setting, result)[0]


def run_evaluator(config: Any, encoder: ImageTextEncoder, setting: Setting) -> Result:
    """Build one evaluator and run it. All ranks take part, and all return or all raise.

    config: a component of this package or of another one
    """
    setting = replace(setting, undecodable={})  # of this evaluator alone
    result = None
    error = None
    try:
        result = config.build().evaluate(encoder, setting)
    except Agreed:
        raise
    except StopRequested:
        pass  # the exchange below sends the reason to all ranks
    except Exception as caught:
        if setting.ranks.world_size == 1:
            raise  # with its own traceback
        error = caught
    exchange(setting, None, error)
    assert result is not None

    if result.clusters is not None:
        result.add("num_clusters", len(result.clusters.unique()))
    messages = list(setting.undecodable)
    if messages:
        result.add("num_undecodable", len(messages))
        names = "; ".join(messages[:5])
        if len(messages) > 5:
            names += f"; and {len(messages) - 5} more"
        result.alarms.append(
            f"{len(messages)} images cannot be decoded and are scored as gray ones: {names}"
        )
    return result


def embed_images(
    encoder: ImageTextEncoder, read: Callable[[int], Tensor], keys: Sequence[str], setting: Setting
) -> Tensor:
    """(N, D) features of read(0), read(1) ..., each (3, H, W) uint8, on all ranks. Equal images
    have equal features, bit by bit. An image that does not decode is embedded as a gray one.

    keys: of the N images, for errors
    """
    count = len(keys)
    undecodable: dict[int, str] = {}

    def embed(first: int, last: int) -> Tensor:
        images = []
        for row in range(first, last):
            try:
                images.append(read(row))
            except UndecodableImage as error:
                undecodable[row] = str(error)
                images.append(gray(encoder.image_size))
        names = list(keys[first:last])
        # Fill up a short last batch: a product of another shape runs on other kernels, and its
        # rows differ by rounding from those of an equal image in a full batch.
        if count > IMAGES_PER_BATCH:
            padding = IMAGES_PER_BATCH - len(images)
            images += images[-1:] * padding
            names += names[-1:] * padding
        features = _encode("image", encoder.encode_image, images, names)
        setting.progress(last, count)
        return features[: last - first]

    features = _embed_batches(count, IMAGES_PER_BATCH, embed, setting)
    for of_rank in exchange(setting, dict(undecodable)):
        undecodable.update(of_rank)
    # By row, so that the messages do not depend on the number of ranks.
    messages = [undecodable[row] for row in sorted(undecodable)]
    # Leaving out an image or two would change the set, and ending the evaluation would lose it for
    # one damaged file. But a set that is damaged as a whole has no meaningful score.
    if len(messages) > max(1, MAX_UNDECODABLE * count) or len(messages) == count > 0:
        raise UserError(f"{messages[0]}\n{len(messages)} of {count} images cannot be decoded")
    setting.undecodable.update(dict.fromkeys(messages))
    return features


def embed_texts(encoder: ImageTextEncoder, texts: Sequence[str], setting: Setting) -> Tensor:
    """(N, D) features on all ranks. Equal texts have equal features, bit by bit."""
    # A text in batches of two shapes would be rounded in two ways, so each is embedded once.
    distinct = list(dict.fromkeys(texts))

    def embed(first: int, last: int) -> Tensor:
        batch = distinct[first:last]
        return _encode("text", encoder.encode_text, batch, list(map(repr, batch)))

    features = _embed_batches(len(distinct), TEXTS_PER_BATCH, embed, setting)
    row_of = {text: row for row, text in enumerate(distinct)}
    return features[[row_of[text] for text in texts]]


def _embed_batches(
    count: int, batch_size: int, embed: Callable[[int, int], Tensor], setting: Setting
) -> Tensor:
    """(count, D): `embed(first, last)` for all batches. Rank r of R embeds batches r, r + R ..., so
    that any number of ranks computes the same products and gets the same bits."""
    ranks = setting.ranks
    counts = exchange(setting, count)
    if len(set(counts)) > 1:
        of_ranks = ", ".join(f"{size} on rank {number}" for number, size in enumerate(counts))
        raise UserError(
            f"ranks have read test sets of different sizes: {of_ranks}; "
            "every machine needs the same files"
        )
    starts = range(0, count, batch_size)
    batches_per_round = BATCHES_PER_EXCHANGE * ranks.world_size
    features: dict[int, Tensor] = {}
    for begin in range(0, len(starts), batches_per_round):
        own: dict[int, Tensor] = {}
        for first in starts[begin : begin + batches_per_round][ranks.rank :: ranks.world_size]:
            setting.check_stop()
            own[first] = embed(first, min(first + batch_size, count))
        # Features travel with errors and requests to stop, in one collective.
        for of_rank in exchange(setting, own):
            features.update(of_rank)
    return torch.cat([features[first] for first in starts])


def _encode(
    what: str, encode: Callable[[Any], Tensor], batch: Sequence[Any], names: Sequence[str]
) -> Tensor:
    """Features of unit norm. Raises EmbeddingError with the names of the samples: a score of rows
    that are not finite is a plausible number too."""
    try:
        features = encode(batch)
    except EmbeddingError as error:
        raise EmbeddingError(what, error.rows, names, error.reason) from error
    wrong = not_unit(features)
    if wrong:
        raise EmbeddingError(what, wrong, names, "every score needs unit rows")
    return features
