"""The image tower of CLIP: a Vision Transformer (arXiv:2010.11929, arXiv:2103.00020) with
open_clip's parameter names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.models.transformer import Transformer

# The keys of open_clip's `vision_cfg` that this file implements.
FIELDS = {
    "image_size",
    "layers",
    "width",
    "patch_size",
    "head_width",
    "mlp_ratio",
    "ls_init_value",
    "patch_dropout",
}
NEUTRAL = {
    "pool_type": "tok",
    "no_ln_pre": False,
    "attentional_pool": False,
    "final_ln_after_pool": False,
}
"""Other keys, with the values at which they describe this tower too."""


class VisionTransformer(nn.Module):
    """(B, 3, H, W) normalized images -> (B, embed_dim), not yet of unit norm.

    num_draws: random numbers in [0, 1) that an image needs in training: one for each patch if
    patches are dropped, else none
    """

    def __init__(self, embed_dim: int, cfg: dict[str, Any], *, quick_gelu: bool) -> None:
        super().__init__()
        width = cfg.get("width", 768)
        self.patch_size = cfg.get("patch_size", 16)
        self.image_size = cfg.get("image_size", 224)
        num_patches = (self.image_size // self.patch_size) ** 2
        kept_fraction = 1 - cfg.get("patch_dropout", 0.0)
        self.num_kept = max(1, int(num_patches * kept_fraction))
        self.num_draws = num_patches if self.num_kept < num_patches else 0
        scale = width**-0.5  # OpenAI's initialization
        self.conv1 = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(num_patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width,
            cfg.get("layers", 12),
            width // cfg.get("head_width", 64),
            mlp_ratio=cfg.get("mlp_ratio", 4.0),
            quick_gelu=quick_gelu,
            layer_scale=cfg.get("ls_init_value"),
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, image: Tensor, draws: Tensor | None = None) -> Tensor:
        """draws: (B, num_draws) uniform in [0, 1), which decide the patches that training drops;
        None: draw them here"""
        x = self._patches(image)
        # Position 0 is that of the class token.
        position = self.positional_embedding.to(x.dtype)
        x = x + position[1:]
        if self.training and self.num_draws > 0:
            if draws is None:
                draws = torch.rand(x.shape[:2], device=x.device)
            # After the positions are added, so that kept patches have their own.
            x = keep_patches(x, draws, self.num_kept)
        class_token = self.class_embedding.to(x.dtype) + position[0]
        x = self.ln_pre(torch.cat([class_token.expand(len(x), 1, -1), x], dim=1))
        # The embedding of an image is the output at the class token.
        at_class_token = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.ln_post(self.transformer(x, at_class_token)) @ self.proj

    def _patches(self, image: Tensor) -> Tensor:
        """(B, patches, width). A convolution with its stride as kernel size is one matmul over the
        patches."""
        size = self.patch_size
        rows = image.shape[2] // size
        columns = image.shape[3] // size
        # Such a convolution ignores a remainder at the right and at the bottom.
        image = image[:, :, : rows * size, : columns * size]
        if torch.is_autocast_enabled(image.device.type):
            image = image.to(torch.get_autocast_dtype(image.device.type))  # half the bytes to move
        x = image.reshape(len(image), 3, rows, size, columns, size)
        # (B, rows, columns, 3, size, size): the order of the convolution's weights in each patch
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(len(image), -1, 3 * size * size)
        return F.linear(x, self.conv1.weight.flatten(1))


def keep_patches(patches: Tensor, draws: Tensor, count: int) -> Tensor:
    """(B, patches, width) -> (B, count, width): those with the smallest draws, in their order
    (arXiv:2212.00794)."""
    kept = draws.argsort(dim=1)[:, :count].sort(dim=1).values
    index = kept[:, :, None].expand(-1, -1, patches.shape[2])
    return patches.gather(1, index)
