"""Pre-norm transformer (arXiv:1706.03762, arXiv:2002.04745) with the parameter names of open_clip, so weights load both ways."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QuickGELU(nn.Module):
    """Sigmoid approximation of GELU that OpenAI's CLIP weights were trained with (arXiv:2103.00020)."""

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

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, width)"""
        batch, tokens, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if x.device.type == "cpu":
            mixed = _attend_by_matmul(q, k, v, causal=self.causal)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def _attend_by_matmul(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Attention written out: q, k, v: (B, heads, T, width / heads).

    On CPUs and sequences of some tens of tokens, two batched matmuls beat the flash kernel, whose backward is not
    vectorized for bfloat16: twice the speed of a whole training step.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if causal:
        future = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device).triu(1)
        scores = scores + future
    return scores.softmax(-1).to(v.dtype) @ v


class LayerScale(nn.Module):
    """Learned gain on a residual branch (arXiv:2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(initial * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(
        self, width: int, heads: int, mlp_width: int, *, causal: bool, quick_gelu: bool, layer_scale: float | None
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal=causal)
        self.ls_1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.ln_2 = nn.LayerNorm(width)
        layers = [
            ("c_fc", nn.Linear(width, mlp_width)),
            ("gelu", QuickGELU() if quick_gelu else nn.GELU()),
            ("c_proj", nn.Linear(mlp_width, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls_2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x)))
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
        self.resblocks = nn.ModuleList(
            Block(width, heads, mlp_width, causal=causal, quick_gelu=quick_gelu, layer_scale=layer_scale)
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x
