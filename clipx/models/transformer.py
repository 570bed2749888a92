"""Pre-norm transformer (arXiv:1706.03762, arXiv:2002.04745) with the parameter names of open_clip,
so weights load both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipx.models.kernels import attention, packed_attention
from clipx.models.packing import Packing


class QuickGELU(nn.Module):
    """Sigmoid approximation of GELU that OpenAI's CLIP weights were trained with
    (arXiv:2103.00020)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention. Parameters are named as those of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        assert width % heads == 0, f"width {width} is not a multiple of {heads} heads"
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, T, width) -> the same, or (N, width) -> the same where sequences lie packed."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if packing is None:
            mixed = attention(qkv, heads=self.heads, causal=self.causal)
        else:
            qkv, groups = packing.to_places(qkv), packing.groups
            mixed = packed_attention(qkv, groups, heads=self.heads, causal=self.causal)
            mixed = packing.to_rows(mixed)
        return self.out_proj(mixed)

    def read(self, x: Tensor, read: Tensor) -> Tensor:
        """(B, T, width), (B,) token indices -> (B, width), the output of those tokens alone.

        With one query a sequence, no token's key or value need be computed.

        Its product with a key, q (W_k x + b_k), is (q W_k) x and a number that is the same for all
        tokens, which softmax ignores; the mean of values W_v x + b_v is W_v of the mean, and b_v.
        """
        batch, _, width = x.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias.view(3, width)
        w_k, w_v = weight[width:].view(2, self.heads, -1, width)
        q = F.linear(take(x, read), weight[:width], bias[0])
        x = x.to(q.dtype)
        q = q.view(batch, self.heads, -1).transpose(0, 1) * w_k.shape[1] ** -0.5
        scores = (q @ w_k).transpose(0, 1) @ x.transpose(1, 2)  # (B, heads, T)
        if self.causal:
            after = torch.arange(x.shape[1], device=x.device) > read[:, None, None]
            scores = scores.masked_fill(after, -torch.inf)
        mean = scores.softmax(-1).to(x.dtype) @ x  # (B, heads, width)
        mixed = (mean.transpose(0, 1) @ w_v.mT).transpose(0, 1).reshape(batch, width)
        return self.out_proj(mixed + bias[2])


def take(x: Tensor, read: Tensor) -> Tensor:
    """One token of each sequence: (B, T, width), (B,) -> (B, width)."""
    return x[torch.arange(len(x), device=x.device), read]


class LayerScale(nn.Module):
    """Learned gain on a residual branch (arXiv:2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(initial * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        causal: bool,
        quick_gelu: bool,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal=causal)
        self.ls_1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width, quick_gelu=quick_gelu)
        self.ls_2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(
        self, x: Tensor, read: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """(B, T, width) -> the same, or with `read`, (B,), those tokens alone: (B, width).

        With `packing` x lies packed, (N, width): the same numbers.
        """
        h = self.ln_1(x)
        if read is None:
            x = x + self.ls_1(self.attn(h, packing))
        elif packing is None:
            x = take(x, read) + self.ls_1(self.attn.read(h, read))
        else:
            counts = [count for count, _ in packing.groups]
            parts = packing.to_places(h).split([count * n for count, n in packing.groups])
            mixed = [
                self.attn.read(part.view(count, -1, part.shape[1]), r)
                for part, count, r in zip(parts, counts, read.split(counts), strict=True)
            ]
            x = x[packing.rows_at(read)] + self.ls_1(torch.cat(mixed))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        causal: bool = False,
        quick_gelu: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        mlp_width = int(width * mlp_ratio)
        assert layers > 0
        self.grad_checkpointing = False
        self.resblocks = nn.ModuleList(
            Block(
                width,
                heads,
                mlp_width,
                causal=causal,
                quick_gelu=quick_gelu,
                layer_scale=layer_scale,
            )
            for _ in range(layers)
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the input of each block for backward and nothing else: its forward runs twice
        (arXiv:1604.06174)."""
        self.grad_checkpointing = enable

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        """(B, T, width), (B,) token indices -> (B, width), the output of those tokens.

        The towers of CLIP are read out at one token. So the last block computes its queries, output
        projection and
        MLP for that token only: the same numbers for a seventh less work in a tower of six blocks.
        """
        if runs_packed(x):
            return self.packed(x.flatten(0, 1), read, Packing([(x.shape[0], x.shape[1])]))
        for block in self.resblocks[:-1]:
            x = self._run(block, x)
        return self._run(self.resblocks[-1], x, read)

    def packed(self, x: Tensor, read: Tensor, packing: Packing) -> Tensor:
        """The same for sequences that lie behind one another, (N, width)."""
        for block in self.resblocks[:-1]:
            x = self._run(block, x, None, packing)
        return self._run(self.resblocks[-1], x, read, packing)

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def runs_packed(x: Tensor) -> bool:
    """On CPUs, but not in torch.compile, which has kernels of its own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
