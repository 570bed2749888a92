"""Two towers, one space. Parameters are named as in open_clip's CustomTextCLIP: visual.*, text.*,
logit_scale, logit_bias."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import component, config
from clipx.models import text_transformer as own_text
from clipx.models import vit as own_vision
from clipx.models.initial import Initial, pretrained
from clipx.models.model_json import (
    covers,
    read_model_json,
    without_pretrained_towers,
)
from clipx.types import UserError

MAX_LOGIT_SCALE = math.log(100)  # arXiv:2103.00020, 2.5: keeps training stable


Tower = Literal["visual", "text"]


@config
class ModelConfig:
    """Which model, what its weights are at first, and which of them stay."""

    name: str
    """The name of one of open_clip's models, such as `ViT-B-32`, a path to a JSON of its schema,
    `local-dir:folder` or `hf-hub:organization/repository`."""
    initial: component("clipx.models.initial") | None = None  # type: ignore[valid-type]
    """Where the first weights come from; null: drawn at random, but for a Hugging Face text tower,
    which is pretrained unless `text_cfg.hf_model_pretrained` is false."""
    locked: list[str] = Field(default_factory=list)
    """Parts that are not trained, by the beginning of their parameters' names: `visual.trunk`
    (arXiv:2111.07991)."""
    unlocked_groups: dict[Tower, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """How many of a locked tower's last groups of layers are trained all the same: `visual: 2`."""

    def read(self) -> dict[str, Any]:
        """The model JSON. Raises UserError."""
        cfg = read_model_json(self.name)
        if self.initial is None:
            return cfg
        if isinstance(self.initial, pretrained.Config):
            cfg = self.initial.of_model(self.name).with_preprocessing(cfg)
        return without_pretrained_towers(cfg)

    def build_initial(self) -> Initial | None:
        """What gives the first weights."""
        if isinstance(self.initial, pretrained.Config):
            return self.initial.of_model(self.name).build()
        return self.initial.build() if self.initial else None


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
        scale = cfg.get("init_logit_scale")
        scale = math.log(1 / 0.07) if scale is None else float(scale)
        self.logit_scale = nn.Parameter(torch.tensor(scale))
        bias = cfg.get("init_logit_bias")
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    @property
    def num_draws(self) -> int:
        """Random numbers that an image's patch dropout needs in training; 0 without."""
        visual: Any = self.visual
        return visual.num_draws if isinstance(visual, own_vision.VisionTransformer) else 0

    def encode_image(self, image: Tensor, draws: Tensor | None = None) -> Tensor:
        """(B, D) float32 of unit norm, whatever the compute dtype.

        draws: (B, num_draws) in [0, 1), one row a sample; None where num_draws is 0
        """
        features = self.visual(image) if draws is None else self.visual(image, draws)
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        """(B, D) float32 of unit norm, whatever the compute dtype."""
        return F.normalize(self.text(text).float(), dim=-1)

    def forward(
        self, image: Tensor, text: Tensor, draws: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """image features, text features"""
        return self.encode_image(image, draws), self.encode_text(text)

    def layer_depths(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> (depth from the input, number of depths of its tower). The scalars are
        of no tower: (0, 1)."""
        from clipx.models import layers

        own = {name: (0, 1) for name, _ in self.named_parameters(recurse=False)}
        return layers.layer_depths({"visual": self.visual, "text": self.text}) | own

    def blocks(self) -> list[nn.Module]:
        """The modules to shard, or to checkpoint, one by one."""
        from clipx.models import layers

        return layers.blocks(self.visual) + layers.blocks(self.text)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Less memory for one more forward pass. Raises UserError."""
        from clipx.models import layers

        layers.set_grad_checkpointing(self.visual, enable)
        layers.set_grad_checkpointing(self.text, enable)

    def lock(
        self, prefixes: Sequence[str], unlocked_groups: Mapping[Tower, int] | None = None
    ) -> None:
        """No gradient for the parameters of these parts, and evaluation behavior always: statistics
        of batch norm stay. Raises UserError.

        unlocked_groups: how many groups of layers, counted from the output, of those that the
        prefixes lock in a tower are trained all the same
        """
        locked: set[str] = set()
        for prefix in prefixes:
            found = {n for n, _ in self.named_parameters() if below(prefix, n)}
            if not found:
                known = [n for n, m in self.named_modules() if 1 <= len(n.split(".")) <= 2 and n]
                raise UserError(
                    f"model.locked {prefix!r} is the beginning of no parameter's name; "
                    f"the model has {', '.join([*known, 'logit_scale'])}"
                )
            locked |= found
        for tower, count in (unlocked_groups or {}).items():
            locked -= self._last_groups(tower, count, locked)
        for name in locked:
            self.get_parameter(name).requires_grad_(False)
        self._locked = [*self._locked, *prefixes]
        self.train(self.training)

    def _last_groups(self, tower: Tower, count: int, locked: set[str]) -> set[str]:
        """Those of the locked parameters that lie in a tower's last `count` groups. Raises
        UserError."""
        depths = self.layer_depths()
        groups = sorted({depths[name][0] for name in locked if below(tower, name)})
        if count >= len(groups):
            raise UserError(
                f"model.unlocked_groups.{tower} {count}: model.locked locks {len(groups)} groups "
                "of this tower; "
                + (f"unlock {len(groups) - 1} at most" if groups else "add the tower to it")
            )
        last = groups[len(groups) - count :]
        return {name for name in locked if below(tower, name) and depths[name][0] in last}

    def train(self, mode: bool = True) -> DualEncoder:
        super().train(mode)
        modules = dict(self.named_modules())
        for prefix in self._locked:
            if prefix in modules:  # else it names a parameter
                _evaluate_untrained(modules[prefix])
        return self

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """To be called after each optimizer step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def _evaluate_untrained(module: nn.Module) -> None:
    """Evaluation behavior for the largest parts whose parameters are all locked."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for child in module.children():
        _evaluate_untrained(child)


def below(prefix: str, name: str) -> bool:
    """Whether a dotted name is `prefix` or lies under it."""
    return f"{name}.".startswith(f"{prefix}.")


def build_towers(cfg: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """clipx's own towers for what CLIP's paper describes, open_clip's for everything else in its
    JSONs."""
    vision_cfg, text_cfg = cfg["vision_cfg"], cfg["text_cfg"]
    embed_dim, quick_gelu = cfg["embed_dim"], cfg.get("quick_gelu", False)
    visual: nn.Module
    text: nn.Module
    # open_clip is imported where it is needed: it takes seconds.
    if covers(own_vision.FIELDS, own_vision.NEUTRAL, vision_cfg) and _is_vit(vision_cfg):
        visual = own_vision.VisionTransformer(embed_dim, vision_cfg, quick_gelu=quick_gelu)
    else:
        from clipx.models.open_clip_towers import image_tower

        visual = image_tower(cfg)
    if covers(own_text.FIELDS, own_text.NEUTRAL, text_cfg):
        text = own_text.TextTransformer(embed_dim, text_cfg, quick_gelu=quick_gelu)
    else:
        from clipx.models.open_clip_towers import text_tower

        text = text_tower(cfg)
    return visual, text


def _is_vit(vision_cfg: dict[str, Any]) -> bool:
    """A ResNet has a list of layers, one number for each stage."""
    return isinstance(vision_cfg.get("layers", 12), int)
