"""The text tower of CLIP: a causal transformer, used at the end token (arXiv:2103.00020), with
open_clip's parameter names.

Tokens do not attend to later ones and padding comes last, so captions may be cut to the longest of
the batch, or of a part of it, without any change of their features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.models.packing import pack_captions
from clipx.models.transformer import Block, Transformer

# The keys of open_clip's `text_cfg` that this file implements.
FIELDS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value"}
NEUTRAL = {
    "no_causal_mask": False,
    "pool_type": "argmax",
    "embed_cls": False,
    "proj_type": "linear",
    "proj_bias": False,
}
"""Other keys, with the values at which they describe this tower too."""


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

        # OpenAI's initialization: the deeper the tower, the smaller residual branches start.
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        # The variances of two branches a block add up, so each is divided by their number.
        branch_std = (2 * width * len(self.transformer.resblocks)) ** -0.5
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=branch_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=branch_std)

    def forward(self, text: Tensor) -> Tensor:
        # As rows without padding and without repeated prefixes where that is quicker.
        captions = pack_captions(text, end_of(text))
        # Positions count from the start of each caption, also where captions are packed.
        x = self.token_embedding(captions.ids)
        x = x + F.embedding(captions.positions, self.positional_embedding)
        x = self.transformer(x, captions.end, captions.packing)
        features = self.ln_final(x) @ self.text_projection
        if captions.order is None:
            return features
        return features[captions.order.argsort()]  # the captions were sorted by length


def end_of(text: Tensor) -> Tensor:
    """(B, T) -> (B,) index of the end token, which has the highest id of the vocabulary."""
    return text.argmax(dim=-1)
