"""Two towers, one space. Parameters are named as in open_clip's CustomTextCLIP: visual.*, text.*,
logit_scale, logit_bias."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import config
from clipx.models.model_json import read_model_json
from clipx.models.text import transformer as own_text
from clipx.models.vision import vit as own_vision

MAX_LOGIT_SCALE = math.log(100)  # arXiv:2103.00020, 2.5: keeps training stable


@config
class ModelConfig:
    """Which model, by its JSON."""

    name: str
    """A path to a JSON of open_clip's schema, or the name of one of its models, such as
    `ViT-B-32`."""

    def read(self) -> dict[str, Any]:
        return read_model_json(self.name)


class DualEncoder(nn.Module):
    """visual: (B, 3, H, W) float -> (B, D); text: (B, T) int64 -> (B, D); logit_scale: log of the
    inverse temperature."""

    logit_bias: nn.Parameter | None

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.visual, self.text = build_towers(cfg)
        self.logit_scale = nn.Parameter(
            torch.tensor(cfg.get("init_logit_scale", math.log(1 / 0.07)))
        )
        bias = cfg.get("init_logit_bias")
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D) float32 of unit norm, whatever the compute dtype."""
        return F.normalize(self.visual(image).float(), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        """(B, D) float32 of unit norm, whatever the compute dtype."""
        return F.normalize(self.text(text).float(), dim=-1)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """image features, text features, logit_scale, logit_bias.

        The two scalars pass through, so that a data-parallel wrapper sees them used and averages
        their gradients.
        """
        return self.encode_image(image), self.encode_text(text), self.logit_scale, self.logit_bias

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """To be called after each optimizer step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def build_towers(cfg: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """clipx's own towers for what CLIP's paper describes, open_clip's for everything else in its
    JSONs."""
    vision_cfg, text_cfg = cfg["vision_cfg"], cfg["text_cfg"]
    embed_dim, quick_gelu = cfg["embed_dim"], cfg.get("quick_gelu", False)
    visual: nn.Module | None = None
    text: nn.Module | None = None
    if set(vision_cfg) <= own_vision.FIELDS and isinstance(vision_cfg.get("layers", 12), int):
        visual = own_vision.VisionTransformer(embed_dim, vision_cfg, quick_gelu=quick_gelu)
    if set(text_cfg) <= own_text.FIELDS:
        text = own_text.TextTransformer(embed_dim, text_cfg, quick_gelu=quick_gelu)
    if visual is not None and text is not None:
        return visual, text
    from clipx.models.open_clip import open_clip_towers

    their_visual, their_text = open_clip_towers(cfg)
    return visual or their_visual, text or their_text
