"""Multi-head self-attention (arXiv:1706.03762, section 3.2), of sequences of one length or packed
behind one another (`packing.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clipx.models.packing import Groups, Packing, split_groups


class Attention(nn.Module):
    """Parameters are named as those of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        assert width % heads == 0, f"width {width} is not a multiple of {heads} heads"
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, T, width) -> the same; with `packing`, (N, width) -> the same."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if packing is None:
            mixed = attention(qkv, heads=self.heads, causal=self.causal)
        else:
            # Only here is a row that sequences share copied to each of them.
            qkv = packing.to_places(qkv)
            mixed = packed_attention(qkv, packing.groups, heads=self.heads, causal=self.causal)
            mixed = packing.to_rows(mixed)
        return self.out_proj(mixed)

    def read(self, x: Tensor, token: Tensor, packing: Packing | None = None) -> Tensor:
        """The output at one token of each sequence only.

        x: (B, T, width), or (N, width) with `packing`; token: (B,) index in the sequence; returns
        (B, width)
        """
        if packing is None:
            return self._read(x, token)
        outputs = []
        for sequences, tokens in packing.sequences(x, token):
            outputs.append(self._read(sequences, tokens))
        return torch.cat(outputs)

    def _read(self, x: Tensor, token: Tensor) -> Tensor:
        """(B, T, width), (B,) -> (B, width), without keys and values of any token.

        With one query a sequence, q (W_k x + b_k) is (q W_k) x plus a number that is the same for
        all tokens, which softmax ignores; the mean of values W_v x + b_v is W_v mean(x) + b_v.
        """
        batch, _, width = x.shape
        # The two products with x cost 2 x heads x width a token, where its key and value would cost
        # 2 x width x width.
        weight = self.in_proj_weight
        q_bias, _, v_bias = self.in_proj_bias.view(3, width)
        w_k, w_v = weight[width:].view(2, self.heads, -1, width)
        queries = x[torch.arange(batch, device=x.device), token]
        q = F.linear(queries, weight[:width], q_bias)
        x = x.to(q.dtype)  # autocast has cast q
        q = q.view(batch, self.heads, -1).transpose(0, 1) * w_k.shape[1] ** -0.5
        scores = (q @ w_k).transpose(0, 1) @ x.transpose(1, 2)  # (B, heads, T)
        if self.causal:
            is_later = torch.arange(x.shape[1], device=x.device) > token[:, None, None]
            scores = scores.masked_fill(is_later, -torch.inf)
        mean = scores.softmax(-1).to(x.dtype) @ x  # (B, heads, width)
        mixed = (mean.transpose(0, 1) @ w_v.mT).transpose(0, 1).reshape(batch, width)
        return self.out_proj(mixed + v_bias)


def attention(qkv: Tensor, *, heads: int, causal: bool) -> Tensor:
    """(B, T, 3 * width) queries, keys and values -> (B, T, width)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)


def packed_attention(qkv: Tensor, groups: Groups, *, heads: int, causal: bool) -> Tensor:
    """(P, 3 * width) queries, keys and values at all places of the groups -> (P, width)."""
    if qkv.device.type == "cpu":
        return _PackedAttention.apply(qkv, groups, heads, causal)
    return fused_attention(qkv, groups, heads=heads, causal=causal)


def fused_attention(qkv: Tensor, groups: Groups, *, heads: int, causal: bool) -> Tensor:
    """`packed_attention` by torch's kernels, one call for each group."""
    mixed = []
    for sequences in split_groups(qkv, groups):
        mixed.append(attention(sequences, heads=heads, causal=causal).flatten(0, 1))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


class _PackedAttention(torch.autograd.Function):
    """Attention as two batched matmuls a group, with a softmax in float32 whatever the dtype.

    For CPUs, where the backward of torch's fused kernel is slow in bfloat16 (LOG.md).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: Groups, heads: int, causal: bool) -> Tensor:
        mixed = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        parts = zip(split_groups(qkv, groups), split_groups(mixed, groups), strict=True)
        saved = []
        for sequences, out in parts:
            by_head = _split_heads(sequences, 3, heads)
            q, k, v = by_head
            mask = q.new_zeros(q.shape[1], q.shape[1])
            if causal:  # baddbmm adds -inf to the scores of later tokens
                mask.fill_(-torch.inf).triu_(1)
            scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
            wide = torch.promote_types(q.dtype, torch.float32)
            weights = scores.softmax(-1, dtype=wide).to(q.dtype)
            _merge_heads(weights @ v, out)
            saved += [by_head, weights]
        ctx.groups = groups
        ctx.heads = heads
        ctx.save_for_backward(*saved)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mixed: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        wide = torch.promote_types(grad_mixed.dtype, torch.float32)
        grad_qkv = grad_mixed.new_empty(len(grad_mixed), 3 * grad_mixed.shape[1])
        grads_in = split_groups(grad_mixed, ctx.groups)
        grads_out = split_groups(grad_qkv, ctx.groups)
        saved = iter(ctx.saved_tensors)
        for grad_in, grad_out in zip(grads_in, grads_out, strict=True):
            by_head = next(saved)  # in the order of `forward`
            weights = next(saved)
            q, k, v = by_head
            grad_by_head = torch.empty_like(by_head)
            grad_q, grad_k, grad_v = grad_by_head
            (grad,) = _split_heads(grad_in, 1, ctx.heads)
            grad_weights = (grad @ v.transpose(1, 2)).to(wide)
            # torch's own softmax backward: weights * (grad - sum(grad * weights)), in one pass.
            grad_scores = torch._softmax_backward_data(grad_weights, weights.to(wide), -1, wide)
            grad_scores = grad_scores.mul_(q.shape[-1] ** -0.5).to(q.dtype)
            torch.bmm(grad_scores, k, out=grad_q)
            torch.bmm(grad_scores.transpose(1, 2), q, out=grad_k)
            torch.bmm(weights.transpose(1, 2), grad, out=grad_v)
            _merge_heads(grad_by_head, grad_out)
        return grad_qkv, None, None, None


def _split_heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """(count, T, parts * width) -> (parts, count * heads, T, width / heads)."""
    x = x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)
    return x.reshape(parts, -1, *x.shape[3:])


def _merge_heads(x: Tensor, out: Tensor) -> None:
    """Copy ([parts,] count * heads, T, d) into (count, T, parts * heads * d)."""
    x = x.view(-1, len(out), x.shape[-3] // len(out), *x.shape[-2:]).permute(1, 3, 0, 2, 4)
    out.view(x.shape).copy_(x)
