"""AdamW (arXiv:1711.05101) with weight decay where it belongs."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from clipx.config import config


@config
class OptimConfig:
    """Defaults are those of CLIP's ViTs (arXiv:2103.00020, table 20)."""

    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = Field(default=0.2, ge=0)
    """On matrices only; see `decays`."""
    warmup: str = "2000 steps"
    """Duration of the linear warmup."""
    clip_grad_norm: float | None = 1.0
    """Largest norm of the gradient of all parameters together; null turns clipping off."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and kernels decay. Gains, biases, embeddings (token, position, class) and the
    temperature do not."""
    return parameter.ndim >= 2 and "embedding" not in name and "pos_embed" not in name


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if decays(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
