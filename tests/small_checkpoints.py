"""Checkpoints of tiny models, written in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints import manifest
from clipx.checkpoints.format import Training, TrainState

MODEL: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
}


def trained(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with moments."""
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return optimizer


def save(folder: Path, step: int, *, keep: int = 3, **other: Any) -> Path:
    model = other.get("model", nn.Linear(3, 2))
    state = TrainState(step=step, position=8 * step, fingerprint=2**63 - step, corpus_digest="ab")
    random = [{"torch": torch.get_rng_state(), "cuda": None}]
    optimizer = trained(model).state_dict()
    training = Training(optimizer, random, ema=other.get("ema"))
    json_ = other.get("model_json", MODEL)
    about = checkpoints.About(json_, keep=keep, **other.get("about", {}))
    path = checkpoints.save(folder, state, model.state_dict(), training, about)
    manifest.prune(folder, step, keep=about.keep, keep_every=about.keep_every)
    return path
