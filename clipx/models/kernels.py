"""The two halves of a transformer block on CPUs, with their backward written out: the same numbers
as the modules in transformer.py, in half the time.

What makes them fast is memory, not arithmetic. Rows are worked on in chunks that stay in cache
from normalization to residual sum; only what backward cannot cheaply compute again is kept; and
sequences lie packed behind one another, (N, width) for all N tokens of a batch, so that captions
need next to no padding. `groups` says how: (number of sequences, tokens of each), in their order.

Matmuls run in the dtype of autocast; the residual stream, normalization, softmax and sums of
weight gradients in that of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Groups = list[tuple[int, int]]

CHUNK = 2048  # tokens: at widths of 192 to 768 its activations fit a second-level cache or nearly
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
        y, saved = torch.empty_like(x), []
        for rows, run in _chunks(groups):
            h = _layer_norm(x[rows], gain, offset)[0].to(w_in.dtype)
            qkv = torch.addmm(b_in, h, w_in.t())
            mixed = torch.empty_like(h)
            saved.append(mixed)
            for part, count in _parts(run):
                by_head = _split_heads(qkv[part], count, 3, heads)
                attention = _softmax_scores(by_head[0], by_head[1], causal=causal)
                _merge_heads(attention @ by_head[2], mixed[part], count)
                saved += [by_head, attention]
            torch.add(x[rows], torch.addmm(b_out, mixed, w_out.t()), out=y[rows])
        ctx.groups, ctx.heads = groups, heads
        ctx.save_for_backward(x, gain, offset, w_in, w_out, *saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, offset, w_in, w_out, *rest = ctx.saved_tensors
        saved = iter(rest)
        dx, grads = torch.empty_like(x), _Sums(gain, offset, w_in, w_in[:, 0], w_out, w_out[:, 0])
        for rows, run in _chunks(ctx.groups):
            d, mixed = dy[rows].to(w_in.dtype), next(saved)
            dw_out, db_out = d.t() @ mixed, d.sum(0)
            dmixed = d @ w_out
            dqkv = d.new_empty(len(d), len(w_in))
            for part, count in _parts(run):
                into = _split_heads(dmixed[part], count, 1, ctx.heads)[0]
                by_head = _attention_backward(into, next(saved), next(saved))
                _merge_heads(by_head, dqkv[part], count)
            h, dx[rows], dgain, doffset = _norm_backward(
                dqkv @ w_in, dy[rows], x[rows], gain, offset
            )
            grads.add(dgain, doffset, dqkv.t() @ h, dqkv.sum(0), dw_out, db_out)
        return dx, *grads.sums, None, None, None


class _AddMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        gain, offset, w_in, b_in, w_out, b_out, quick_gelu = args
        w_in, b_in, w_out, b_out = _cast(x, w_in, b_in, w_out, b_out)
        y, hidden = torch.empty_like(x), []
        for rows, _ in _chunks([(len(x), 1)]):
            h = _layer_norm(x[rows], gain, offset)[0].to(w_in.dtype)
            hidden.append(torch.addmm(b_in, h, w_in.t()))
            out = torch.addmm(b_out, _gelu(hidden[-1], quick=quick_gelu), w_out.t())
            torch.add(x[rows], out, out=y[rows])
        ctx.quick_gelu = quick_gelu
        ctx.save_for_backward(x, gain, offset, w_in, w_out, *hidden)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, offset, w_in, w_out, *hidden = ctx.saved_tensors
        dx, grads = torch.empty_like(x), _Sums(gain, offset, w_in, w_in[:, 0], w_out, w_out[:, 0])
        for (rows, _), u in zip(_chunks([(len(x), 1)]), hidden, strict=True):
            d = dy[rows].to(w_in.dtype)
            dw_out, db_out = d.t() @ _gelu(u, quick=ctx.quick_gelu), d.sum(0)
            du = _gelu_backward(d @ w_out, u, quick=ctx.quick_gelu)
            h, dx[rows], dgain, doffset = _norm_backward(du @ w_in, dy[rows], x[rows], gain, offset)
            grads.add(dgain, doffset, du.t() @ h, du.sum(0), dw_out, db_out)
        return dx, *grads.sums, None


class _Sums:
    """Gradients of the weights, summed over chunks."""

    def __init__(self, *like: Tensor) -> None:
        self.sums = [torch.zeros_like(t, dtype=like[0].dtype) for t in like]

    def add(self, *terms: Tensor) -> None:
        for total, term in zip(self.sums, terms, strict=True):
            total += term


def _cast(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    amp = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if amp else x.dtype
    return tuple(w.to(dtype) for w in weights)


def _chunks(groups: Groups) -> Iterator[tuple[slice, Groups]]:
    """Whole sequences of about CHUNK tokens together: their rows and groups."""
    total = sum(count * tokens for count, tokens in groups)
    limit = math.ceil(total / max(1, round(total / CHUNK)))
    start, size, run = 0, 0, []
    for count, tokens in groups:
        while count > 0:
            taken = min(count, max(1, (limit - size) // tokens))
            run.append((taken, tokens))
            count, size = count - taken, size + taken * tokens
            if size + tokens > limit:
                yield slice(start, start + size), run
                start, size, run = start + size, 0, []
    if run:
        yield slice(start, start + size), run


def _parts(run: Groups) -> Iterator[tuple[slice, int]]:
    """Rows within the chunk and number of sequences of each group."""
    start = 0
    for count, tokens in run:
        yield slice(start, start + count * tokens), count
        start += count * tokens


def _layer_norm(x: Tensor, gain: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.native_layer_norm(x, gain.shape, gain, offset, EPS)


def _norm_backward(
    dh: Tensor, dy: Tensor, x: Tensor, gain: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The normalized rows once more, then gradients of x + f(layer_norm(x)): x, gain, offset."""
    h, mean, rstd = _layer_norm(x, gain, offset)
    dx, dgain, doffset = torch.ops.aten.native_layer_norm_backward(
        dh.to(x.dtype), x, gain.shape, mean, rstd, gain, offset, [True] * 3
    )
    return h.to(dh.dtype), dx.add_(dy), dgain, doffset


def _split_heads(x: Tensor, count: int, parts: int, heads: int) -> Tensor:
    """(count * T, parts * width) -> (parts, count * heads, T, width / heads)."""
    width = x.shape[1] // parts
    x = x.view(count, -1, parts, heads, width // heads).permute(2, 0, 3, 1, 4)
    return x.reshape(parts, count * heads, -1, width // heads)


def _merge_heads(x: Tensor, out: Tensor, count: int) -> None:
    """The way back: ([parts,] count * heads, T, d) into (count * T, parts * width)."""
    x = x.view(-1, count, x.shape[-3] // count, *x.shape[-2:]).permute(1, 3, 0, 2, 4)
    out.view(x.shape).copy_(x)


def _softmax_scores(q: Tensor, k: Tensor, *, causal: bool) -> Tensor:
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
