"""The two halves of a transformer block on CPUs, with their backward written out: the same numbers
as the modules in transformer.py, in half the time.

Sequences lie packed behind one another, (N, width) for all N tokens of a batch, so that captions
need next to no padding and matmuls are few and large. `groups` says how: (number of sequences,
tokens of each), in their order. What backward needs is kept once, in the dtype of matmuls.

Matmuls run in the dtype of autocast; the residual stream, normalization, softmax and sums of
weight gradients in that of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Groups = list[tuple[int, int]]

PIECE = 4096  # rows
EPS = 1e-5  # of nn.LayerNorm


def add_attention(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    proj_in: tuple[Tensor, Tensor],
    proj_out: tuple[Tensor, Tensor],
    groups: Groups,
    *,
    heads: int,
    causal: bool,
) -> Tensor:
    """x + attention(layer_norm(x)): (N, width) -> (N, width). Pairs are weight and bias."""
    return _AddAttention.apply(x, *norm, *proj_in, *proj_out, groups, heads, causal)


def add_mlp(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    proj_in: tuple[Tensor, Tensor],
    proj_out: tuple[Tensor, Tensor],
    *,
    quick_gelu: bool,
) -> Tensor:
    """x + mlp(layer_norm(x)): (N, width) -> (N, width). Pairs are weight and bias."""
    return _AddMLP.apply(x, *norm, *proj_in, *proj_out, quick_gelu)


class _AddAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        gain, offset, w_in, b_in, w_out, b_out, groups, heads, causal = args
        w_in, b_in, w_out, b_out = _cast(x, w_in, b_in, w_out, b_out)
        h, mean, rstd = _layer_norm(x, gain, offset, w_in.dtype)
        qkv, mixed, saved = torch.addmm(b_in, h, w_in.t()), torch.empty_like(h), []
        for rows, count in _rows(groups):
            by_head = _split_heads(qkv[rows], count, 3, heads)
            attention = _attention(by_head[0], by_head[1], causal=causal)
            _merge_heads(attention @ by_head[2], mixed[rows], count)
            saved += [by_head, attention]
        ctx.groups, ctx.heads = groups, heads
        ctx.save_for_backward(x, gain, offset, mean, rstd, h, w_in, w_out, mixed, *saved)
        return x + torch.addmm(b_out, mixed, w_out.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, gain, offset, mean, rstd, h, w_in, w_out, mixed, *saved = ctx.saved_tensors
        d = dy.to(h.dtype)
        dmixed, dqkv = d @ w_out, torch.empty(len(d), len(w_in), dtype=d.dtype)
        pairs = zip(saved[::2], saved[1::2], strict=True)
        for (rows, count), (by_head, attention) in zip(_rows(ctx.groups), pairs, strict=True):
            into = _split_heads(dmixed[rows], count, 1, ctx.heads)[0]
            _merge_heads(_attention_backward(into, by_head, attention), dqkv[rows], count)
        dx, dgain, doffset = _norm_backward(dqkv @ w_in, dy, x, gain, offset, mean, rstd)
        return (
            dx,
            dgain,
            doffset,
            *_linear_backward(dqkv, h),
            *_linear_backward(d, mixed),
            *[None] * 3,
        )


class _AddMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        gain, offset, w_in, b_in, w_out, b_out, quick_gelu = args
        w_in, b_in, w_out, b_out = _cast(x, w_in, b_in, w_out, b_out)
        h, mean, rstd = _layer_norm(x, gain, offset, w_in.dtype)
        u = torch.addmm(b_in, h, w_in.t())
        ctx.quick_gelu = quick_gelu
        ctx.save_for_backward(x, gain, offset, mean, rstd, h, w_in, w_out, u)
        return x + torch.addmm(b_out, _gelu(u, quick=quick_gelu), w_out.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, gain, offset, mean, rstd, h, w_in, w_out, u = ctx.saved_tensors
        d = dy.to(h.dtype)
        out = _linear_backward(d, _gelu(u, quick=ctx.quick_gelu))
        du = _gelu_backward(d @ w_out, u, quick=ctx.quick_gelu)
        dx, dgain, doffset = _norm_backward(du @ w_in, dy, x, gain, offset, mean, rstd)
        return dx, dgain, doffset, *_linear_backward(du, h), *out, None


def _cast(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    amp = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if amp else x.dtype
    return tuple(w.to(dtype) for w in weights)


def _linear_backward(d: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """d: (N, out), x: (N, in) -> gradients of weight and bias in float32.

    The long sum over rows goes by pieces: they stay in cache, and are summed in float32.
    """
    wide, weight = _wide(d), None
    for part, rows in zip(d.split(PIECE), x.split(PIECE), strict=True):
        term = (part.t() @ rows).to(wide)
        weight = term if weight is None else weight.add_(term)
    assert weight is not None
    return weight, d.sum(0).to(wide)


def _layer_norm(
    x: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows in `dtype`; mean and reciprocal deviation."""
    h, mean, rstd = torch.native_layer_norm(x, gain.shape, gain, offset, EPS)
    return h.to(dtype), mean, rstd


def _norm_backward(dh: Tensor, dy: Tensor, x: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    """Of x + f(layer_norm(x)): the gradients of x, gain and offset."""
    gain, offset, mean, rstd = saved
    dx, dgain, doffset = torch.ops.aten.native_layer_norm_backward(
        dh.to(x.dtype), x, gain.shape, mean, rstd, gain, offset, [True] * 3
    )
    return dx.add_(dy), dgain, doffset


def _rows(groups: Groups) -> Iterator[tuple[slice, int]]:
    """Rows and number of sequences of each group."""
    start = 0
    for count, tokens in groups:
        yield slice(start, start + count * tokens), count
        start += count * tokens


def _split_heads(x: Tensor, count: int, parts: int, heads: int) -> Tensor:
    """(count * T, parts * width) -> (parts, count * heads, T, width / heads)."""
    width = x.shape[1] // parts
    x = x.view(count, -1, parts, heads, width // heads).permute(2, 0, 3, 1, 4)
    return x.reshape(parts, count * heads, -1, width // heads)


def _merge_heads(x: Tensor, out: Tensor, count: int) -> None:
    """The way back: ([parts,] count * heads, T, d) into (count * T, parts * width)."""
    x = x.view(-1, count, x.shape[-3] // count, *x.shape[-2:]).permute(1, 3, 0, 2, 4)
    out.view(x.shape).copy_(x)


def _attention(q: Tensor, k: Tensor, *, causal: bool) -> Tensor:
    """q, k: (batch, T, d) -> (batch, T, T) weights of attention (arXiv:1706.03762, 3.2.1)."""
    tokens = q.shape[1]
    hidden = q.new_zeros(tokens, tokens)
    if causal:
        hidden.fill_(-torch.inf).triu_(1)
    scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1, dtype=_wide(q)).to(q.dtype)


def _attention_backward(do: Tensor, qkv: Tensor, attention: Tensor) -> Tensor:
    """do: (batch, T, d); qkv: (3, batch, T, d) -> the gradient of qkv."""
    q, k, v = qkv
    dqkv = torch.empty_like(qkv)
    da = do @ v.transpose(1, 2)
    ds = torch._softmax_backward_data(da.to(_wide(q)), attention.to(_wide(q)), -1, _wide(q))
    ds = ds.mul_(q.shape[-1] ** -0.5).to(q.dtype)
    torch.bmm(ds, k, out=dqkv[0])
    torch.bmm(ds.transpose(1, 2), q, out=dqkv[1])
    torch.bmm(attention.transpose(1, 2), do, out=dqkv[2])
    return dqkv


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _gelu(u: Tensor, *, quick: bool) -> Tensor:
    return u * torch.sigmoid(1.702 * u) if quick else F.gelu(u)


def _gelu_backward(d: Tensor, u: Tensor, *, quick: bool) -> Tensor:
    if not quick:
        return torch.ops.aten.gelu_backward(d, u)
    s = torch.sigmoid(1.702 * u)
    return d * s * (1 + 1.702 * u * (1 - s))
