"""Attention for sequences that lie packed behind one another (packing.py): (P, ...) for the places
of all their tokens. On CPUs its backward is written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clipx.models.packing import Groups


def packed_attention(qkv: Tensor, groups: Groups, *, heads: int, causal: bool) -> Tensor:
    """(P, 3 * width) queries, keys and values -> (P, width) (arXiv:1706.03762, 3.2)."""
    if qkv.device.type == "cpu":
        return _PackedAttention.apply(qkv, groups, heads, causal)
    return fused_attention(qkv, groups, heads=heads, causal=causal)


def attention(qkv: Tensor, *, heads: int, causal: bool) -> Tensor:
    """(B, T, 3 * width) -> (B, T, width), for sequences of one length."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)


def fused_attention(qkv: Tensor, groups: Groups, *, heads: int, causal: bool) -> Tensor:
    """The same by the library's kernels, one call for each group."""
    mixed = []
    parts = qkv.split([count * tokens for count, tokens in groups])
    for part, (count, tokens) in zip(parts, groups, strict=True):
        out = attention(part.view(count, tokens, -1), heads=heads, causal=causal)
        mixed.append(out.flatten(0, 1))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


class _PackedAttention(torch.autograd.Function):
    """Two batched matmuls, and a softmax that is in float32 whatever the dtype of the rest. On CPUs
    the backward of the library's fused kernel is slow in bfloat16 (LOG.md)."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: Groups, heads: int, causal: bool) -> Tensor:
        mixed, saved = qkv.new_empty(len(qkv), qkv.shape[1] // 3), []
        for rows, count in _rows(groups):
            q, k, v = by_head = _split_heads(qkv[rows], count, 3, heads)
            scores = torch.baddbmm(_hidden(q, causal), q, k.transpose(1, 2), alpha=_scale(q))
            weights = scores.softmax(-1, dtype=_wide(q)).to(q.dtype)
            _merge_heads(weights @ v, mixed[rows], count)
            saved += [by_head, weights]
        ctx.groups, ctx.heads = groups, heads
        ctx.save_for_backward(*saved)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmixed: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved, wide = ctx.saved_tensors, _wide(dmixed)
        dqkv = dmixed.new_empty(len(dmixed), 3 * dmixed.shape[1])
        pairs = zip(saved[::2], saved[1::2], strict=True)
        for (rows, count), (by_head, weights) in zip(_rows(ctx.groups), pairs, strict=True):
            (q, k, v), into = by_head, torch.empty_like(by_head)
            (do,) = _split_heads(dmixed[rows], count, 1, ctx.heads)
            dweights = (do @ v.transpose(1, 2)).to(wide)
            dscores = torch._softmax_backward_data(dweights, weights.to(wide), -1, wide)
            dscores = dscores.mul_(_scale(q)).to(q.dtype)
            torch.bmm(dscores, k, out=into[0])
            torch.bmm(dscores.transpose(1, 2), q, out=into[1])
            torch.bmm(weights.transpose(1, 2), do, out=into[2])
            _merge_heads(into, dqkv[rows], count)
        return dqkv, None, None, None


def _rows(groups: Groups) -> Iterator[tuple[slice, int]]:
    """Rows and number of sequences of each group."""
    start = 0
    for count, tokens in groups:
        yield slice(start, start + count * tokens), count
        start += count * tokens


def _split_heads(x: Tensor, count: int, parts: int, heads: int) -> Tensor:
    """(count * T, parts * width) -> (parts, count * heads, T, width / heads)."""
    x = x.view(count, -1, parts, heads, x.shape[1] // parts // heads).permute(2, 0, 3, 1, 4)
    return x.reshape(parts, count * heads, *x.shape[3:])


def _merge_heads(x: Tensor, out: Tensor, count: int) -> None:
    """The way back: ([parts,] count * heads, T, d) into (count * T, parts * width)."""
    x = x.view(-1, count, x.shape[-3] // count, *x.shape[-2:]).permute(1, 3, 0, 2, 4)
    out.view(x.shape).copy_(x)


def _hidden(q: Tensor, causal: bool) -> Tensor:
    """(T, T): what is added to scores, -inf for the tokens after a query's own."""
    zeros = q.new_zeros(q.shape[1], q.shape[1])
    return zeros.fill_(-torch.inf).triu_(1) if causal else zeros


def _scale(q: Tensor) -> float:
    return q.shape[-1] ** -0.5


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
