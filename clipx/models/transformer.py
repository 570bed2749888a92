"""Pre-norm transformer (arXiv:1706.03762, arXiv:2002.04745) with the parameter names of open_clip,
so weights load both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipx.models import kernels
from clipx.models.kernels import Groups


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

    def forward(self, x: Tensor, read: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, T, width); with `read`, (B,) token indices, the output of those
        tokens alone: (B, 1, width)."""
        width = x.shape[-1]
        if read is None:
            q, k, v = self._heads(F.linear(x, self.in_proj_weight, self.in_proj_bias), 3)
        else:
            wanted = take(x, read)
            (q,) = self._heads(
                F.linear(wanted, self.in_proj_weight[:width], self.in_proj_bias[:width]), 1
            )
            k, v = self._heads(
                F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]), 2
            )
        hidden = self._hidden(x, read) if self.causal else None
        if x.device.type == "cpu":
            mixed = _attend_by_matmul(q, k, v, hidden)
        elif read is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=None if hidden is None else ~hidden
            )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts * width) -> `parts` tensors (B, heads, T, width / heads)."""
        batch, tokens, total = x.shape
        x = x.view(batch, tokens, parts, self.heads, total // parts // self.heads)
        return x.permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def _hidden(x: Tensor, read: Tensor | None) -> Tensor:
        """True where a query must not see a key: the tokens after its own. Broadcasts to (B, heads,
        queries, T)."""
        key = torch.arange(x.shape[1], device=x.device)
        query = key[:, None] if read is None else read[:, None, None, None]
        return key > query


def take(x: Tensor, read: Tensor) -> Tensor:
    """One token of each sequence: (B, T, width), (B,) -> (B, 1, width)."""
    return x[torch.arange(len(x), device=x.device), read][:, None]


def _attend_by_matmul(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """Attention written out: q: (B, heads, Q, d); k, v: (B, heads, T, d).

    On CPUs and sequences of some tens of tokens, two batched matmuls beat the flash kernel, whose
    backward is not
    vectorized for bfloat16: twice the speed of a whole training step.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


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
        self.quick_gelu = quick_gelu

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
        self, x: Tensor, read: Tensor | None = None, groups: Groups | None = None
    ) -> Tensor:
        """(B, T, width) -> the same; with `read`, (B,), only those tokens: (B, 1, width).

        With `groups`, on CPUs, x lies packed, (N, width), and so does what comes back. The two are
        the same numbers.
        """
        if groups is not None:
            return self._packed(x, read, groups)
        mixed = self.ls_1(self.attn(self.ln_1(x), read))
        x = mixed + (x if read is None else take(x, read))
        return x + self.ls_2(self.mlp(self.ln_2(x)))

    def _packed(self, x: Tensor, read: Tensor | None, groups: Groups) -> Tensor:
        attn, mlp = self.attn, self.mlp
        norm = (self.ln_1.weight, self.ln_1.bias)
        if read is None:
            proj_in, proj_out = (
                (attn.in_proj_weight, attn.in_proj_bias),
                scaled(attn.out_proj, self.ls_1),
            )
            x = kernels.add_attention(
                x, norm, proj_in, proj_out, groups, heads=attn.heads, causal=attn.causal
            )
        else:
            parts = x.split([count * tokens for count, tokens in groups])
            counts = [count for count, _ in groups]
            mixed = [
                self.attn(self.ln_1(part).view(count, -1, x.shape[1]), r)
                for part, count, r in zip(parts, counts, read.split(counts), strict=True)
            ]
            x = x[first_of(groups) + read] + self.ls_1(torch.cat(mixed).squeeze(1))
        norm, proj_in = (self.ln_2.weight, self.ln_2.bias), (mlp.c_fc.weight, mlp.c_fc.bias)
        return kernels.add_mlp(
            x, norm, proj_in, scaled(mlp.c_proj, self.ls_2), quick_gelu=mlp.quick_gelu
        )


def scaled(linear: nn.Linear, gain: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a projection and the LayerScale behind it, as one."""
    if isinstance(gain, LayerScale):
        return gain.gamma[:, None] * linear.weight, gain.gamma * linear.bias
    return linear.weight, linear.bias


def first_of(groups: Groups) -> Tensor:
    """Row of each packed sequence's first token."""
    lengths = torch.cat([torch.full((count,), tokens) for count, tokens in groups])
    return lengths.cumsum(0) - lengths


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
            return self.packed(x.flatten(0, 1), read, [x.shape[:2]])
        for block in self.resblocks[:-1]:
            x = self._run(block, x)
        return self._run(self.resblocks[-1], x, read).squeeze(1)

    def packed(self, x: Tensor, read: Tensor, groups: Groups) -> Tensor:
        """The same for sequences that lie behind one another: (N, width); see kernels.py."""
        for block in self.resblocks[:-1]:
            x = self._run(block, x, None, groups)
        return self._run(self.resblocks[-1], x, read, groups)

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def runs_packed(x: Tensor) -> bool:
    """On CPUs, where kernels.py is faster than the modules; torch.compile has kernels of its
    own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
