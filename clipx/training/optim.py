"""Optimizers, and which parameters get weight decay, a lower learning rate, or Muon."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clipx.config import config
from clipx.durations import DurationText
from clipx.models.dual_encoder import DualEncoder
from clipx.training.schedule import ScheduleConfig
from clipx.types import UserError

Fraction = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Group = dict[str, Any]


@config
class OptimConfig:
    """Defaults are those of CLIP's ViTs (arXiv:2103.00020, table 20)."""

    kind: Literal["adamw", "lamb", "muon"] = "adamw"
    """`adamw` (arXiv:1711.05101); `lamb` (arXiv:1904.00962) for batches of 32,768 and more; `muon`
    (arXiv:2502.16982) for the matrices inside of the towers, AdamW for the rest."""
    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """Decay of Adam's averages of the gradient and of its square."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the root of Adam's second average."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Of the matrices of `muon`."""
    weight_decay: float = Field(default=0.2, ge=0)
    """On matrices only; see `decays`."""
    layer_decay: Fraction | dict[Literal["visual", "text"], Fraction] = 1.0
    """The learning rate falls by this factor from one layer to the one below it
    (arXiv:2106.08254); one number, or one for each tower."""
    warmup: DurationText = "2000 steps"
    """Duration of the linear warmup."""
    schedule: ScheduleConfig = ScheduleConfig()
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient of all parameters together; null turns clipping off."""


def build_optimizer(
    encoder: DualEncoder,
    config: OptimConfig,
    own: Sequence[tuple[str, nn.Parameter]] = (),
    whole: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Build the optimizer of the trained parameters. Each of its param_groups has an `lr_scale`, a
    factor of the step's learning rate. Raises UserError.

    own: the parameters of the objective by name; whole: those of them that are never sharded
    """
    hidden, other = _parameter_groups(encoder, config, own, whole)
    if config.kind == "adamw":
        return _adamw(other, config)
    if config.kind == "lamb":
        from timm.optim import Lamb

        settings: Group = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
        return Lamb(other, max_grad_norm=None, **settings)  # the step clips
    if not hidden:
        raise UserError(
            "optim.kind muon: no matrix inside of the towers is trained, since model.locked or "
            "cache_features leaves none, or the towers are convolutions; use optim.kind=adamw"
        )
    parts = [_muon(hidden, config)]
    if other:
        parts.append(_adamw(other, config))
    return JoinedOptimizer(parts)


# Leaf names of parameters that are looked up, added, or learned as an input, whatever their shape.
_INPUTS = re.compile(r"embed|token|position|pos_|bias|query|latent|probe")


def decays(name: str, parameter: Tensor) -> bool:
    """Whether a parameter gets weight decay: matrices and kernels do. Gains, biases, embeddings
    (token, position, class, register), the temperature, and vectors of any shape do not. Tables of
    nn.Embedding have the leaf name `weight`, so the caller excludes them."""
    leaf = name.rpartition(".")[2]
    return sum(size > 1 for size in parameter.shape) >= 2 and not _INPUTS.search(leaf)


def _parameter_groups(
    encoder: DualEncoder,
    config: OptimConfig,
    own: Sequence[tuple[str, nn.Parameter]],
    whole: Sequence[nn.Parameter],
) -> tuple[list[Group], list[Group]]:
    """(matrices for muon, everything else), each in as few groups as its settings allow."""
    embedding_tables = {id(m.weight) for m in encoder.modules() if isinstance(m, nn.Embedding)}
    never_sharded = {id(parameter) for parameter in whole}
    depths: dict[str, tuple[int, int]] = {}
    if config.kind == "muon" or config.layer_decay != 1.0:
        depths = encoder.layer_depths()

    by_settings: dict[tuple[bool, bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in [*encoder.named_parameters(), *own]:
        if not parameter.requires_grad:
            continue
        is_decayed = decays(name, parameter) and id(parameter) not in embedding_tables
        depth, num_depths = depths.get(name, (0, 1))
        # Muon is for matrices that map features to features. Embeddings (the first depth) and the
        # projection into the common space (the last) train better with AdamW.
        is_inside = 0 < depth < num_depths - 1
        is_for_muon = config.kind == "muon" and is_decayed and is_inside and parameter.ndim == 2
        decay = config.layer_decay
        if isinstance(decay, dict):
            decay = decay.get("visual" if name.startswith("visual.") else "text", 1.0)
        # Scalars and the parameters of an objective have depth 0 of 1, so that their scale is 1.
        scale = decay ** (num_depths - 1 - depth)
        # A fused kernel takes sharded parameters or whole ones. Those that are never sharded
        # (scalars, and heads that an objective's loss calls) always are groups of their own, so
        # that a checkpoint fits runs with and without shards.
        is_whole = parameter.ndim == 0 or id(parameter) in never_sharded
        settings = (is_for_muon, is_decayed, scale, is_whole)
        by_settings.setdefault(settings, []).append(parameter)

    for_muon: list[Group] = []
    other: list[Group] = []
    # Sorted, because the order of groups is part of a checkpoint.
    for settings, parameters in sorted(by_settings.items(), key=itemgetter(0), reverse=True):
        is_for_muon, is_decayed, scale, _ = settings
        group = {
            "params": parameters,
            "lr": config.lr * scale,
            "lr_scale": scale,
            "weight_decay": config.weight_decay if is_decayed else 0.0,
        }
        if config.kind == "lamb":
            # Without this timm computes a trust ratio only where weight decay is above 0.
            group["always_adapt"] = is_decayed
        (for_muon if is_for_muon else other).append(group)
    return for_muon, other


def _adamw(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    """Fused: one pass over memory, five times as fast on CPUs."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _muon(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    try:
        from torch.optim import Muon
    except ImportError as error:
        raise UserError(
            f"optim.kind muon needs torch 2.9 or newer, and this is {torch.__version__}: "
            "pip install --upgrade torch, or use optim.kind=adamw"
        ) from error
    # Orthogonal updates, scaled to be as large as AdamW's: both take the same learning rate
    # (arXiv:2502.16982).
    return Muon(groups, lr=config.lr, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")


class JoinedOptimizer(torch.optim.Optimizer):
    """Several optimizers of different parameters as one. It has all their groups and states, so
    that torch saves and loads it like any other."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share_state()

    def _share_state(self) -> None:
        start = 0
        for part in self._parts:
            stop = start + len(part.param_groups)
            # Optimizers also add entries here that the state of an older torch lacks.
            part.__setstate__({"state": self.state, "param_groups": self.param_groups[start:stop]})
            start = stop

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by load_state_dict."""
        super().__setstate__(state)
        self._share_state()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
