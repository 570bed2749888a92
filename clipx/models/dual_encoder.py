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
from clipx.models.initial import Initial
from clipx.models.model_json import describes, read_model_json, without_pretrained_towers
from clipx.types import UserError

MAX_LOGIT_SCALE = math.log(100)  # arXiv:2103.00020, 2.5: keeps training stable

Tower = Literal["visual", "text"]


@config
class ModelConfig:
    """The model, its initial weights, and which of them are trained."""

    name: str
    """The name of one of open_clip's models, such as `ViT-B-32`, a path to a JSON of its schema,
    `local-dir:folder` or `hf-hub:organization/repository`."""
    initial: component("clipx.models.initial") | None = None  # type: ignore[valid-type]
    """The source of the initial weights; null: random, except for a Hugging Face text tower, which
    is pretrained unless `text_cfg.hf_model_pretrained` is false."""
    locked: list[str] = Field(default_factory=list)
    """Parts that are not trained, by the beginning of their parameters' names: `visual.trunk`
    (arXiv:2111.07991)."""
    unlocked_groups: dict[Tower, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Number of a locked tower's last groups of layers to train all the same: `visual: 2`."""

    def read(self) -> dict[str, Any]:
        """The model JSON. Raises UserError."""
        cfg = read_model_json(self.name)
        initial = self.build_initial()
        if initial is None:
            return cfg
        return without_pretrained_towers(initial.adapt(cfg))

    def build_initial(self) -> Initial | None:
        """The source of the initial weights. Raises UserError."""
        if self.initial is None:
            return None
        return self.initial.build().of_model(self.name)


class DualEncoder(nn.Module):
    """visual: (B, 3, H, W) float -> (B, D); text: (B, T) int64 -> (B, D)
    logit_scale: () log of the inverse temperature
    num_draws: random numbers that an image's patch dropout needs in training; 0 without
    """

    logit_bias: nn.Parameter | None

    def __init__(
        self, cfg: dict[str, Any], towers: tuple[nn.Module, nn.Module] | None = None
    ) -> None:
        """towers: (visual, text) to use instead of building them from `cfg`"""
        super().__init__()
        self.visual, self.text = towers or (build_image_tower(cfg), build_text_tower(cfg))
        visual: Any = self.visual
        self.num_draws: int = getattr(visual, "num_draws", 0)  # declared by towers that need draws
        self._locked: list[str] = []
        # Logits are exp(logit_scale) * cosine + logit_bias. As a log, so that gradient steps change
        # the temperature by a factor and never make it negative.
        scale = cfg.get("init_logit_scale")
        if scale is None:
            scale = math.log(1 / 0.07)  # arXiv:2103.00020, 2.5
        self.logit_scale = nn.Parameter(torch.tensor(float(scale)))
        bias = cfg.get("init_logit_bias")
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def encode_image(self, image: Tensor, draws: Tensor | None = None) -> Tensor:
        """(B, D) float32 of unit norm, whatever the compute dtype.

        draws: (B, num_draws) in [0, 1); None where num_draws is 0
        """
        features = self.visual(image) if draws is None else self.visual(image, draws)
        # bfloat16 keeps two to three digits, and the loss multiplies cosines by up to 100.
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
        """Parameter name -> (depth from the input, number of depths of its tower). The scalars
        belong to no tower: (0, 1)."""
        from clipx.models import layers

        depths = {name: (0, 1) for name, _ in self.named_parameters(recurse=False)}
        # The two towers may differ in depth, so each depth comes with the number in its tower.
        for tower in ("visual", "text"):
            of_tower = layers.tower_depths(self.get_submodule(tower))
            count = 1 + max(of_tower.values(), default=0)
            for name, depth in of_tower.items():
                depths[f"{tower}.{name}"] = (depth, count)
        return depths

    def blocks(self) -> list[nn.Module]:
        """The modules to shard, or to checkpoint, one by one."""
        from clipx.models import layers

        return layers.blocks(self.visual) + layers.blocks(self.text)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Save memory for one more forward pass. Raises UserError."""
        from clipx.models import layers

        layers.set_grad_checkpointing(self.visual, enable)
        layers.set_grad_checkpointing(self.text, enable)

    def lock(
        self, prefixes: Sequence[str], unlocked_groups: Mapping[Tower, int] | None = None
    ) -> None:
        """Stop training the parameters under these prefixes, and keep their modules in evaluation
        mode, so that batch norm keeps its statistics. Raises UserError.

        unlocked_groups: number of locked groups of layers in a tower, counted from the output, to
        train all the same
        """
        locked: set[str] = set()
        for prefix in prefixes:
            names = {name for name, _ in self.named_parameters() if is_below(prefix, name)}
            if not names:
                # The towers and their parts; deeper names would fill the screen.
                known = [name for name, _ in self.named_modules() if name and name.count(".") <= 1]
                raise UserError(
                    f"model.locked {prefix!r} is the beginning of no parameter's name; "
                    f"the model has {', '.join([*known, 'logit_scale'])}"
                )
            locked |= names
        for tower, count in (unlocked_groups or {}).items():
            depths = self.layer_depths()
            in_tower = {name: depths[name][0] for name in locked if is_below(tower, name)}
            groups = sorted(set(in_tower.values()))
            if count >= len(groups):
                remedy = f"unlock {len(groups) - 1} at most" if groups else "add the tower to it"
                raise UserError(
                    f"model.unlocked_groups.{tower} {count}: model.locked locks {len(groups)} "
                    f"groups of this tower; {remedy}"
                )
            first_depth = groups[-count]
            locked -= {name for name, depth in in_tower.items() if depth >= first_depth}
        for name in locked:
            self.get_parameter(name).requires_grad_(False)
        self._locked += prefixes
        self.train(self.training)  # puts locked modules into evaluation mode

    def train(self, mode: bool = True) -> DualEncoder:
        super().train(mode)
        # The trainer calls this for the whole model; locked parts must not follow.
        modules = dict(self.named_modules())
        for prefix in self._locked:
            if prefix in modules:  # else it is the name of a parameter
                _eval_locked(modules[prefix])
        return self

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Called after each optimizer step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def _eval_locked(module: nn.Module) -> None:
    """Put the largest parts whose parameters are all locked into evaluation mode."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for child in module.children():
        _eval_locked(child)


def is_below(prefix: str, name: str) -> bool:
    """Whether a dotted name is `prefix` or begins with its parts."""
    return f"{name}.".startswith(f"{prefix}.")


def build_image_tower(cfg: dict[str, Any]) -> nn.Module:
    """clipx's own tower for what CLIP's paper describes, else open_clip's. Raises UserError."""
    settings = cfg["vision_cfg"]
    is_resnet = isinstance(settings.get("layers"), list)  # one number for each stage
    if describes(settings, own_vision.FIELDS, own_vision.NEUTRAL) and not is_resnet:
        quick_gelu = cfg.get("quick_gelu", False)
        return own_vision.VisionTransformer(cfg["embed_dim"], settings, quick_gelu=quick_gelu)
    from clipx.models.open_clip_towers import image_tower  # open_clip takes seconds to import

    return image_tower(cfg)


def build_text_tower(cfg: dict[str, Any]) -> nn.Module:
    """As `build_image_tower`."""
    settings = cfg["text_cfg"]
    if describes(settings, own_text.FIELDS, own_text.NEUTRAL):
        quick_gelu = cfg.get("quick_gelu", False)
        return own_text.TextTransformer(cfg["embed_dim"], settings, quick_gelu=quick_gelu)
    from clipx.models.open_clip_towers import text_tower

    return text_tower(cfg)
