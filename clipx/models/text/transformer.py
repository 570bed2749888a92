"""The text tower of CLIP: a causal transformer read out at the end token (arXiv:2103.00020), with
open_clip's parameter names.

The mask is causal and padding comes last, so no token sees padding: captions may be cut to the
longest of the batch, or of a part of it, without any change of the embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipx.models.transformer import Block, Transformer

# The keys of open_clip's `text_cfg` that this file implements; a config with others gets
# open_clip's own tower.
FIELDS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value"}

GROUP = (
    128  # captions of like length encoded together on the CPU: 64 x 7 tokens still fill its matmuls
)


class TextTransformer(nn.Module):
    """(B, T) token ids, T up to context_length -> (B, embed_dim), not yet of unit norm."""

    def __init__(self, embed_dim: int, cfg: dict[str, Any], *, quick_gelu: bool) -> None:
        super().__init__()
        width = cfg.get("width", 512)
        self.context_length = cfg.get("context_length", 77)
        self.token_embedding = nn.Embedding(cfg.get("vocab_size", 49408), width)
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, width))
        self.transformer = Transformer(
            width,
            cfg.get("layers", 12),
            cfg.get("heads", 8),
            mlp_ratio=cfg.get("mlp_ratio", 4.0),
            causal=True,
            quick_gelu=quick_gelu,
            layer_scale=cfg.get("ls_init_value"),
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self._initialize(width)

    def _initialize(self, width: int) -> None:
        """OpenAI's: residual branches start smaller the deeper the tower is."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        branch_std = (2 * width * len(self.transformer.resblocks)) ** -0.5
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=branch_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=branch_std)

    def forward(self, text: Tensor) -> Tensor:
        if text.device.type == "cpu" and len(text) >= 2 * GROUP:
            return self._by_length(text)
        return self._encode(self.token_embedding(text), end_of(text))

    def _encode(self, x: Tensor, end: Tensor) -> Tensor:
        """x: (B, T, width) token embeddings; end: (B,) index of the end token."""
        x = x + self.positional_embedding[: x.shape[1]]
        return self.ln_final(self.transformer(x, end)) @ self.text_projection

    def _by_length(self, text: Tensor) -> Tensor:
        """The same rows, encoded in groups of like length, each cut to its longest: most of a
        batch's padding is gone.

        Captions average 7 tokens where the longest of 512 has 26. On a GPU the lengths would have
        to come back first.
        """
        end = end_of(text)
        order = end.argsort(stable=True)
        rows = order.split(GROUP)
        groups = [text[r, : int(end[r[-1]]) + 1] for r in rows]
        # One look-up for all groups, because each would get a gradient as large as the vocabulary.
        flat = self.token_embedding(torch.cat([group.flatten() for group in groups]))
        parts = flat.split([group.numel() for group in groups])
        features = [
            self._encode(x.view(*group.shape, -1), end[r])
            for x, group, r in zip(parts, groups, rows, strict=True)
        ]
        return torch.cat(features)[order.argsort()]


def end_of(text: Tensor) -> Tensor:
    """(B, T) -> (B,) index of the end token, which has the highest id of the vocabulary."""
    return text.argmax(dim=-1)
