"""Optimizers, with weight decay and learning rates where they belong."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clipx.config import config
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
    eps: float = Field(default=1e-6, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Of the matrices of `muon`."""
    weight_decay: float = Field(default=0.2, ge=0)
    """On matrices only; see `decays`."""
    layer_decay: Fraction | dict[Literal["visual", "text"], Fraction] = 1.0
    """The learning rate falls by this factor from one layer to the one below it
    (arXiv:2106.08254); one number, or one for each tower."""
    warmup: str = "2000 steps"
    """Duration of the linear warmup."""
    schedule: ScheduleConfig = ScheduleConfig()
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient of all parameters together; null turns clipping off."""


def build_optimizer(encoder: DualEncoder, config: OptimConfig) -> torch.optim.Optimizer:
    """Each of its param_groups has an `lr_scale`, by which the learning rate of a step is to be
    multiplied. Frozen parameters are in none. Raises UserError."""
    hidden, other = _groups(encoder, config)
    if config.kind == "lamb":
        return _lamb(other, config)
    if config.kind == "adamw":
        return _adamw(other, config)
    if not hidden:
        raise UserError(
            "optim.kind muon: no matrix inside of the towers is trained, since model.locked or "
            "cache_features leaves none, or the towers are convolutions; use optim.kind=adamw"
        )
    return Joined([_muon(hidden, config), *([_adamw(other, config)] if other else [])])


# The leaf names of what is looked up, added or learned as an input, whatever its shape.
_INPUTS = re.compile(r"embed|token|position|pos_|bias|query|latent|probe")


def decays(name: str, parameter: Tensor) -> bool:
    """Matrices and kernels decay. Gains, biases, embeddings (token, position, class, register), the
    temperature and vectors in whatever shape do not. Tables of nn.Embedding are sorted out before,
    because their leaf name is `weight`."""
    leaf = name.rpartition(".")[2]
    return sum(size > 1 for size in parameter.shape) >= 2 and not _INPUTS.search(leaf)


def _groups(encoder: DualEncoder, config: OptimConfig) -> tuple[list[Group], list[Group]]:
    """(matrices for muon, everything else), each in as few groups as its settings allow."""
    tables = {id(m.weight) for m in encoder.modules() if isinstance(m, nn.Embedding)}
    depths: dict[str, tuple[int, int]] = {}
    if config.kind == "muon" or config.layer_decay != 1.0:
        depths = encoder.layer_depths()
    found: dict[tuple[bool, bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if not parameter.requires_grad:
            continue
        decaying = decays(name, parameter) and id(parameter) not in tables
        depth, num_depths = depths.get(name, (0, 1))
        inside = 0 < depth < num_depths - 1
        muon = config.kind == "muon" and decaying and inside and parameter.ndim == 2
        scale = _layer_decay(name, config) ** (num_depths - 1 - depth)
        # A fused kernel takes sharded parameters or whole ones, and scalars are not sharded. They
        # are a group always, so that a checkpoint fits a run with and without shards.
        key = (muon, decaying, scale, parameter.ndim == 0)
        found.setdefault(key, []).append(parameter)
    parts: tuple[list[Group], list[Group]] = ([], [])
    ordered = sorted(found.items(), key=itemgetter(0), reverse=True)
    for (muon, decaying, scale, _), parameters in ordered:
        group = {
            "params": parameters,
            "lr": config.lr * scale,
            "lr_scale": scale,
            "weight_decay": config.weight_decay if decaying else 0.0,
        }
        if config.kind == "lamb":  # whose trust ratio timm ties to a weight decay above 0
            group["always_adapt"] = decaying
        parts[0 if muon else 1].append(group)
    return parts


def _layer_decay(name: str, config: OptimConfig) -> float:
    if isinstance(config.layer_decay, float):
        return config.layer_decay
    return next((d for tower, d in config.layer_decay.items() if name.startswith(tower)), 1.0)


def _adamw(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    """Fused: one pass over memory, on CUDA, on CPUs (five times as fast) and with shards."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _lamb(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    from timm.optim import Lamb

    return Lamb(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        max_grad_norm=None,  # the step clips
    )


def _muon(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    try:
        from torch.optim import Muon
    except ImportError as error:
        raise UserError(
            f"optim.kind muon needs torch 2.9 or newer, and this is {torch.__version__}: "
            "pip install --upgrade torch, or use optim.kind=adamw"
        ) from error
    # Updates as large as AdamW's, so that both take the same learning rate (arXiv:2502.16982).
    return Muon(groups, lr=config.lr, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")


class Joined(torch.optim.Optimizer):
    """Several optimizers, each with parameters of its own, as one: their groups and their states
    are those of the whole, so that torch saves and loads it like any other."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self._parts:
            stop = start + len(part.param_groups)
            # in which optimizers also complete what an older state lacks
            part.__setstate__({"state": self.state, "param_groups": self.param_groups[start:stop]})
            start = stop

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by load_state_dict."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
