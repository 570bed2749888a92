"""Pre-norm transformer (arXiv:1706.03762, arXiv:2002.04745) with the parameter names of open_clip,
so that weights load both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipx.models.attention import Attention
from clipx.models.packing import Packing


class QuickGELU(nn.Module):
    """The approximation of GELU that OpenAI's CLIP was trained with (arXiv:2103.00020)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


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
        *,
        mlp_ratio: float = 4.0,
        causal: bool = False,
        quick_gelu: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal=causal)
        self.ls_1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), quick_gelu=quick_gelu)
        self.ls_2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(
        self, x: Tensor, read: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """(B, T, width) -> the same, or with `read`, (B,) token indices, those tokens: (B, width).

        With `packing`, x is (N, width). FSDP2 and checkpointing call blocks by `forward`, so both
        ways are here.
        """
        # Pre-norm: each branch reads a normalized copy, and the sum itself is never normalized, so
        # gradients reach the first block undiminished.
        if read is None:
            x = x + self.ls_1(self.attn(self.ln_1(x), packing))
        else:
            mixed = self.attn.read(self.ln_1(x), read, packing)
            if packing is None:
                x = x[torch.arange(len(x), device=x.device), read]
            else:
                x = x[packing.rows_at(read)]
            x = x + self.ls_1(mixed)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """grad_checkpointing: keep only the input of each block for backward, which computes its
    forward again (arXiv:1604.06174)
    """

    def __init__(self, width: int, layers: int, heads: int, **settings: Any) -> None:
        """settings: the optional ones of `Block`"""
        super().__init__()
        assert layers > 0
        self.grad_checkpointing = False
        self.resblocks = nn.ModuleList(Block(width, heads, **settings) for _ in range(layers))

    def forward(self, x: Tensor, read: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, T, width), (B,) token indices -> (B, width), the output at those tokens.

        With `packing`, x is (N, width). The towers of CLIP use one token of each sequence, so the
        last block computes its queries, output projection and MLP for that token only: the same
        numbers for a seventh less work in a tower of six blocks.
        """
        # Images: sequences of one length. On CPUs packed attention is quicker; other devices and
        # torch.compile have kernels of their own. The text tower has packed its captions itself.
        if packing is None and x.device.type == "cpu" and not torch.compiler.is_compiling():
            packing = Packing([(x.shape[0], x.shape[1])])
            x = x.flatten(0, 1)
        last = len(self.resblocks) - 1
        for number, block in enumerate(self.resblocks):
            token = read if number == last else None
            if self.grad_checkpointing and torch.is_grad_enabled():
                # Not the reentrant kind, which needs an input with a gradient and disturbs DDP.
                x = checkpoint(block, x, token, packing, use_reentrant=False)
            else:
                x = block(x, token, packing)
        return x
