"""How the tokens of a batch lie behind one another, in rows (N, ...), so that all that works on
each token alone, which is nearly everything, meets next to no padding.

Where nothing depends on later tokens, captions that begin alike are alike as far as that goes: a
prefix that several have in common, at least the start token, needs one row. For attention, the rows
are copied to the places of whole sequences and its output is taken from one place of each row.
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


@dataclass(frozen=True)
class Taken:
    """Some rows of N, any of them any number of times. `Taken.of` makes it.

    index: (P,) which
    order, starts: (P,) and (N,), places sorted by the row they take, and where those of a row start
    """

    index: Tensor
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, index: Tensor, num_rows: int) -> Taken:
        counts = torch.bincount(index, minlength=num_rows)
        return cls(index, index.argsort(stable=True), counts.cumsum(0) - counts)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, width) -> (P, width)"""
        return _Take.apply(x, self)


class _Take(torch.autograd.Function):
    """The library's backward of a look-up adds row by row, in the gradient's own dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taken: Taken) -> Tensor:
        ctx.taken = taken
        return F.embedding(taken.index, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return F.embedding_bag(ctx.taken.order, d, ctx.taken.starts, mode="sum"), None


@dataclass(frozen=True)
class Packing:
    """groups: how sequences lie in the P places of attention
    spread: the row of each place; None: rows are places, N = P
    shown: a place of each row
    """

    groups: Groups
    spread: Taken | None = None
    shown: Taken | None = None

    def to_places(self, x: Tensor) -> Tensor:
        return x if self.spread is None else self.spread(x)

    def to_rows(self, x: Tensor) -> Tensor:
        return x if self.shown is None else self.shown(x)

    def rows_at(self, tokens: Tensor) -> Tensor:
        """The row of one token of each sequence, by its number in the sequence."""
        lengths = lengths_of(self.groups)
        places = (lengths.cumsum(0) - lengths).to(tokens.device) + tokens
        return places if self.spread is None else self.spread.index[places]


@dataclass(frozen=True)
class PackedText:
    """Captions of a batch in rows.

    ids, positions: (N,) token id of each row and its place in its caption
    order: (B,) captions as they lie in the groups
    """

    ids: Tensor
    positions: Tensor
    order: Tensor
    packing: Packing


def pack(text: Tensor, end: Tensor, *, padding: int, share: bool) -> PackedText:
    """(B, T) ids and (B,) index of each last token that counts.

    padding: places that a group may waste
    share: one row for each distinct prefix, for towers whose tokens see none after them; on CPUs
    """
    order = end.argsort(stable=True)
    groups = group_by_length((end[order] + 1).tolist(), padding)
    each = torch.arange(text.shape[1], device=text.device)
    position = torch.cat([each[:tokens].repeat(count) for count, tokens in groups])
    lengths = lengths_of(groups).to(order.device)
    caption = order.repeat_interleave(lengths, output_size=len(position))  # without a wait
    if not share:
        return PackedText(text[caption, position], position, order, Packing(groups))
    row_of, is_first = prefixes(text, end)
    shown = is_first[caption, position].nonzero()[:, 0]
    row = row_of[caption, position.minimum(end[caption])]
    shown = shown[row[shown].argsort()]
    packing = Packing(groups, Taken.of(row, len(shown)), Taken.of(shown, len(row)))
    return PackedText(text[caption[shown], position[shown]], position[shown], order, packing)


def prefixes(text: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) the number of the distinct prefix that ends at each token, and (B, T) bool, the token
    at which a number appears first. What lies after the end has a number that means nothing.

    In the order of a dictionary, a caption has in common with any before it what it has in common
    with the one just before it.
    """
    words = np.where(np.arange(text.shape[1]) <= end.numpy()[:, None], text.numpy(), -1)
    order = np.lexsort(words.T[::-1])
    words = words[order]
    differs = np.ones(words.shape, dtype=bool)
    differs[1:] = np.logical_or.accumulate(words[1:] != words[:-1], axis=1)
    differs &= words >= 0
    number = np.where(differs, differs.cumsum().reshape(differs.shape) - 1, 0)
    row_of, is_first = np.empty_like(number), np.empty_like(differs)
    row_of[order], is_first[order] = np.maximum.accumulate(number), differs
    return torch.from_numpy(row_of), torch.from_numpy(is_first)


def group_by_length(lengths: list[int], padding: int) -> Groups:
    """Ascending lengths -> (captions, tokens of the longest) of each group.

    A group takes longer captions in until that costs it more than `padding` tokens.
    """
    groups: Groups = []
    count, tokens, wasted = 0, lengths[0], 0
    for length in lengths:
        wasted += count * (length - tokens)
        if wasted > padding:
            groups.append((count, tokens))
            count, wasted = 0, 0
        count, tokens = count + 1, length
    return [*groups, (count, tokens)]


def lengths_of(groups: Groups) -> Tensor:
    """(number of sequences,) tokens of each, on the host."""
    return torch.cat([torch.full((count,), tokens) for count, tokens in groups])
