"""The text tower of CLIP: a causal transformer read out at the end token (arXiv:2103.00020), with
open_clip's parameter names.

The mask is causal and padding comes last, so no token sees padding: captions may be cut to the
longest of the batch, or of a part of it, without any change of the embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.models.packing import pack
from clipx.models.transformer import Block, Transformer

# The keys of open_clip's `text_cfg` that this file implements; a config with others gets
# open_clip's own tower.
FIELDS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value"}

PADDING = {"cpu": 400, "cuda": 2000}
"""Tokens that a group may waste; one more group of captions costs about as much. On CPUs only
attention meets them."""


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

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.set_grad_checkpointing(enable)

    def forward(self, text: Tensor) -> Tensor:
        if text.device.type in PADDING and not torch.compiler.is_compiling():
            return self._packed(text)
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        return self.ln_final(self.transformer(x, end_of(text))) @ self.text_projection

    def _packed(self, text: Tensor) -> Tensor:
        """The same features, by groups of like length that lie behind one another, so that most of
        a batch's padding is gone: captions average 7 tokens where the longest of 512 has 26, or 20
        where it has 77. On CPUs what several captions begin with is encoded once, too.

        The host must know the lengths, so it waits for the device here.
        """
        end, on_cpu = end_of(text), text.device.type == "cpu"
        packed = pack(text, end, padding=PADDING[text.device.type], share=on_cpu)
        x = self.token_embedding(packed.ids)
        x = x + F.embedding(packed.positions, self.positional_embedding)
        x = self.transformer.packed(x, end[packed.order], packed.packing)
        features = self.ln_final(x) @ self.text_projection
        return features[packed.order.argsort()]


def end_of(text: Tensor) -> Tensor:
    """(B, T) -> (B,) index of the end token, which has the highest id of the vocabulary."""
    return text.argmax(dim=-1)
