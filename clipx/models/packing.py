"""Pack the tokens of a batch behind one another, as rows (N, ...), so that all that works on each
token alone, which is nearly everything in a transformer, works on next to no padding.

In a causal tower, captions that begin alike have equal features up to where they differ. So a
prefix that several captions share, at least the start token, needs one row. For attention, rows are
copied to the places of whole sequences, and the result is taken from one place of each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Groups = list[tuple[int, int]]
"""(number of sequences, tokens of each), in their order."""

PADDING = {"cpu": 400, "cuda": 2000}
"""Tokens that a group may waste, by device; another group costs about as much. On CPUs only
attention works on them."""

# oneDNN, which multiplies matrices on CPUs, prepares a kernel for each shape that is new to it, and
# keeps the last 1,024. With batches of 512 captions as they come, that took 5 % of each step; with
# shapes that are multiples of these numbers, next to nothing after some ten steps.
_CAPTIONS = 16
_ROWS = 64
_LARGE_BATCH = 256  # captions; of fewer, the rows that fill up would cost more


@dataclass(frozen=True)
class RowIndex:
    """Row numbers to take from N rows, each any number of times. `RowIndex.of` makes it.

    index: (P,) row numbers
    order: (P,) places, sorted by the row that they take
    starts: (N,) where in `order` the places of each row begin
    """

    index: Tensor
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, index: Tensor, num_rows: int) -> RowIndex:
        counts = torch.bincount(index, minlength=num_rows)
        return cls(index, index.argsort(stable=True), counts.cumsum(0) - counts)

    def take(self, x: Tensor) -> Tensor:
        """(N, width) -> (P, width)"""
        return _Take.apply(x, self)


class _Take(torch.autograd.Function):
    """A look-up whose backward sums all gradients of a row at once. torch's own adds them one by
    one in their own dtype, and a sum of ones in bfloat16 stops at 256."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: RowIndex) -> Tensor:
        ctx.rows = rows
        return F.embedding(rows.index, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        rows: RowIndex = ctx.rows
        return F.embedding_bag(rows.order, grad, rows.starts, mode="sum"), None


@dataclass(frozen=True)
class Packing:
    """How N rows of features make sequences.

    groups: lengths of the sequences, which lie at P places
    row_of_place: (P,) the row to copy to each place; None: rows are places, N = P
    place_of_row: (N,) a place at which each row is found
    """

    groups: Groups
    row_of_place: RowIndex | None = None
    place_of_row: RowIndex | None = None

    def to_places(self, x: Tensor) -> Tensor:
        return x if self.row_of_place is None else self.row_of_place.take(x)

    def to_rows(self, x: Tensor) -> Tensor:
        return x if self.place_of_row is None else self.place_of_row.take(x)

    def sequences(self, x: Tensor, token: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(N, width), (B,) -> (count, T, width) and (count,) of each group."""
        counts = [count for count, _ in self.groups]
        parts = split_groups(self.to_places(x), self.groups)
        return list(zip(parts, token.split(counts), strict=True))

    def rows_at(self, token: Tensor) -> Tensor:
        """(B,) index of a token in each sequence -> (B,) its row."""
        lengths = _lengths(self.groups)
        places = (lengths.cumsum(0) - lengths).to(token.device) + token
        return places if self.row_of_place is None else self.row_of_place.index[places]


@dataclass(frozen=True)
class PackedText:
    """Captions of a batch as a text tower computes them.

    ids: (N,) token ids of the rows; (B, T) where captions are not packed
    positions: (N,) or (T,) index of each in its caption
    end: (B,) index of each caption's end token, in the order of `packing`
    order: (B,) the caption of each sequence; None: as in the batch
    """

    ids: Tensor
    positions: Tensor
    end: Tensor
    packing: Packing | None = None
    order: Tensor | None = None


def pack_captions(text: Tensor, end: Tensor) -> PackedText:
    """(B, T) ids and (B,) index of each end token, packed where that is quicker.

    Captions average 7 tokens where the longest of 512 has 26, or 20 where it has 77. The host must
    know their lengths, so it waits for the device here.
    """
    device = text.device.type
    # Lengths that change from batch to batch would make torch.compile compile again and again.
    if device not in PADDING or torch.compiler.is_compiling():
        return PackedText(text, torch.arange(text.shape[1], device=text.device), end)
    return pack(text, end, padding=PADDING[device], share=device == "cpu")


def pack(text: Tensor, end: Tensor, *, padding: int, share: bool) -> PackedText:
    """Sort captions by length and pack them in groups of like length.

    padding: tokens that a group may waste
    share: give each distinct prefix one row; for causal towers, on CPUs
    """
    order = end.argsort(stable=True)  # of captions, the shortest first
    rounds = share and len(end) >= _LARGE_BATCH
    lengths_in_order = (end[order] + 1).tolist()
    groups = group_by_length(lengths_in_order, padding, multiple=_CAPTIONS if rounds else 1)
    steps = torch.arange(text.shape[1], device=text.device)
    position = torch.cat([steps[:tokens].repeat(count) for count, tokens in groups])
    lengths = _lengths(groups).to(order.device)
    # With its size given, repeat_interleave need not wait for the device.
    caption = order.repeat_interleave(lengths, output_size=len(position))
    if not share:
        return PackedText(text[caption, position], position, end[order], Packing(groups), order)
    prefix, is_first = number_prefixes(text, end)
    # Padding within a group takes the row of its caption's end token: no row is computed for it.
    row = prefix[caption, position.minimum(end[caption])]
    # Of the places that share a row, the first computes it.
    place = is_first[caption, position].nonzero()[:, 0]
    place = place[row[place].argsort()]
    if rounds:  # with rows that nothing uses, so that their gradient is 0
        place = torch.cat([place, place.new_zeros(-len(place) % _ROWS)])
    packing = Packing(groups, RowIndex.of(row, len(place)), RowIndex.of(place, len(row)))
    caption = caption[place]
    position = position[place]
    return PackedText(text[caption, position], position, end[order], packing, order)


def number_prefixes(text: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Number the distinct prefixes of captions.

    Returns (B, T) the number of the prefix that ends at each token, meaningless after the caption's
    end, and (B, T) bool, one True for each number.
    """
    is_word = np.arange(text.shape[1]) <= end.numpy()[:, None]
    words = np.where(is_word, text.numpy(), -1)
    # In alphabetical order, a caption shares with the one before it whatever prefix it shares with
    # any earlier one.
    order = np.lexsort(words.T[::-1])
    words = words[order]
    # A token begins a new prefix from the first difference to the caption above it onwards.
    is_new = np.ones(words.shape, dtype=bool)
    is_new[1:] = np.logical_or.accumulate(words[1:] != words[:-1], axis=1)
    is_new &= words >= 0
    number = np.where(is_new, is_new.cumsum().reshape(is_new.shape) - 1, 0)
    # Tokens that are not new take the number of the caption above them.
    number = np.maximum.accumulate(number)
    in_batch_order = np.argsort(order)
    return torch.from_numpy(number[in_batch_order]), torch.from_numpy(is_new[in_batch_order])


def group_by_length(lengths: list[int], padding: int, *, multiple: int = 1) -> Groups:
    """Ascending lengths -> (captions, tokens of the longest) of each group. A group takes in longer
    captions until that wastes more than `padding` tokens.

    multiple: of captions in each group but the last
    """
    groups: Groups = []
    count = 0
    tokens = 0
    wasted = 0
    for start in range(0, len(lengths), multiple):
        added = lengths[start : start + multiple]
        longest = added[-1]
        # Captions of the group are padded to the new longest one, and so are the added ones.
        more = count * (longest - tokens) + len(added) * longest - sum(added)
        if count and wasted + more > padding:
            groups.append((count, tokens))
            count = 0
            wasted = 0
            more = len(added) * longest - sum(added)
        count += len(added)
        tokens = longest
        wasted += more
    return [*groups, (count, tokens)]


def split_groups(x: Tensor, groups: Groups) -> list[Tensor]:
    """(P, width) -> a view (count, T, width) of each group."""
    views = []
    start = 0
    for count, tokens in groups:
        stop = start + count * tokens
        views.append(x[start:stop].view(count, tokens, -1))
        start = stop
    return views


def _lengths(groups: Groups) -> Tensor:
    """(number of sequences,) tokens of each, on the host."""
    return torch.cat([torch.full((count,), tokens) for count, tokens in groups])
