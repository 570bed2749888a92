"""A tiny model, a batch and a step: what the tests of single optimizer steps share."""

from __future__ import annotations

from typing import Any

import torch
from tiny_runs import MODEL
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.distributed.wrap import Alone
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder
from clipx.training.loss_scale import LossScaler
from clipx.training.precision import Precision
from clipx.training.step import Step
from clipx.types import Batch

CPU = torch.device("cpu")
PATCH_DROPOUT: dict[str, Any] = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"patch_dropout": 0.5}}


def batch(rows: int = 6, *, seed: int = 5) -> Batch:
    """Captions end at different places and are padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.randint(1, 49405, (rows, 8), generator=generator)
    for row in range(rows):
        end = 7 - row % 4
        text[row, end], text[row, end + 1 :] = 49407, 0
    return Batch(image, text, [f"k{i}" for i in range(rows)], list(range(rows)), {})


def model(cfg: dict[str, Any] = MODEL, *, seed: int = 0) -> DualEncoder:
    torch.manual_seed(seed)
    return DualEncoder(cfg)


class Exact(DualEncoder):
    """In float64, so that equal numbers are told from nearly equal ones."""

    def encode_image(self, image: Tensor, draws: Tensor | None = None) -> Tensor:
        visual = (
            self.visual(image.double()) if draws is None else self.visual(image.double(), draws)
        )
        return F.normalize(visual, dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        return F.normalize(self.text(text), dim=-1)


def exact(cfg: dict[str, Any] = MODEL, *, seed: int = 0) -> Exact:
    torch.manual_seed(seed)
    encoder = Exact(cfg)
    encoder.double()
    return encoder


def stepper(
    encoder: DualEncoder,
    optimizer: torch.optim.Optimizer,
    *,
    dtype: torch.dtype = torch.float32,
    scaler: LossScaler | None = None,
    **settings: Any,
) -> Step:
    """A step on one rank."""
    defaults: dict[str, Any] = {
        "model": Alone(encoder),
        "loss": InfoNCE(),
        "pool": LocalPool(),
        "precision": Precision(dtype, CPU, scaler),
        "device": CPU,
    }
    return Step(encoder=encoder, optimizer=optimizer, **(defaults | settings))
