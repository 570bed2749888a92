"""Two towers, one space. Parameters are named as in open_clip's CustomTextCLIP: visual.*, text.*,
logit_scale, logit_bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import component, config
from clipx.models.model_json import read_model_json
from clipx.models.text import transformer as own_text
from clipx.models.transformer import Block
from clipx.models.vision import vit as own_vision
from clipx.types import UserError

MAX_LOGIT_SCALE = math.log(100)  # arXiv:2103.00020, 2.5: keeps training stable


@config
class ModelConfig:
    """Which model, what its weights are at first, and which of them stay."""

    name: str
    """A path to a JSON of open_clip's schema, or the name of one of its models, such as
    `ViT-B-32`."""
    initial: component("clipx.models.initial") | None = None  # type: ignore[valid-type]
    """Where the first weights come from; null: drawn at random."""
    locked: list[str] = Field(default_factory=list)
    """Parts that are not trained, by the beginning of their parameters' names: `visual.trunk`
    (arXiv:2111.07991)."""

    def read(self) -> dict[str, Any]:
        return read_model_json(self.name)


class DualEncoder(nn.Module):
    """visual: (B, 3, H, W) float -> (B, D); text: (B, T) int64 -> (B, D); logit_scale: log of the
    inverse temperature."""

    logit_bias: nn.Parameter | None

    def __init__(
        self, cfg: dict[str, Any], towers: tuple[nn.Module, nn.Module] | None = None
    ) -> None:
        """towers: (visual, text) in place of those that `cfg` describes"""
        super().__init__()
        self.visual, self.text = towers or build_towers(cfg)
        self._locked: list[str] = []
        self.logit_scale = nn.Parameter(
            torch.tensor(cfg.get("init_logit_scale", math.log(1 / 0.07)))
        )
        bias = cfg.get("init_logit_bias")
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    num_draws = 0

    def blocks(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, Block)]

    def set_grad_checkpointing(self, enable: bool) -> None:
        raise NotImplementedError

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D) float32 of unit norm, whatever the compute dtype."""
        return F.normalize(self.visual(image).float(), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        """(B, D) float32 of unit norm, whatever the compute dtype."""
        return F.normalize(self.text(text).float(), dim=-1)

    def forward(
        self, image: Tensor, text: Tensor, draws: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """image features, text features, logit_scale, logit_bias.

        The two scalars pass through, so that a data-parallel wrapper sees them used and averages
        their gradients.
        """
        return self.encode_image(image), self.encode_text(text), self.logit_scale, self.logit_bias

    def lock(self, prefixes: Sequence[str]) -> None:
        """No gradient for the parameters of these parts, and evaluation behavior always. Raises
        UserError."""
        for prefix in prefixes:
            found = [p for n, p in self.named_parameters() if below(prefix, n)]
            if not found:
                known = [n for n, m in self.named_modules() if 1 <= len(n.split(".")) <= 2 and n]
                raise UserError(
                    f"model.locked {prefix!r} is the beginning of no parameter's name; "
                    f"the model has {', '.join([*known, 'logit_scale'])}"
                )
            for parameter in found:
                parameter.requires_grad_(False)
        self._locked = [*self._locked, *prefixes]
        self.train(self.training)

    def train(self, mode: bool = True) -> DualEncoder:
        super().train(mode)
        for name, module in self.named_modules():
            if any(below(prefix, name) for prefix in self._locked):
                module.training = False
        return self

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """To be called after each optimizer step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def below(prefix: str, name: str) -> bool:
    """Whether a dotted name is `prefix` or lies under it."""
    return f"{name}.".startswith(f"{prefix}.")


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
