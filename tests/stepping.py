"""A tiny model, a batch and a step: what the tests of single optimizer steps share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tiny_runs import MODEL
from torch import Tensor
from torch.nn import functional as F

from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import SingleProcess
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder
from clipx.objectives.image_text import ImageText
from clipx.training.learner import Learner
from clipx.training.precision import LossScaler, Precision
from clipx.training.step import Step
from clipx.types import Batch

CPU = torch.device("cpu")
ONE_PROCESS = Runtime(SimpleNamespace(device=CPU, process_index=0, num_processes=1))
PATCH_DROPOUT: dict[str, Any] = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"patch_dropout": 0.5}}


def batch(rows: int = 6, *, seed: int = 5) -> Batch:
    """Captions end at different places and are padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.randint(1, 49405, (rows, 8), generator=generator)
    for row in range(rows):
        end = 7 - row % 4
        text[row, end], text[row, end + 1 :] = 49407, 0
    keys = [f"k{i}" for i in range(rows)]
    return Batch({"image": image, "text": text}, keys, list(range(rows)), {})


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


def learner(
    encoder: DualEncoder,
    optimizer: torch.optim.Optimizer,
    *,
    loss: Any = None,
    dtype: torch.dtype = torch.float32,
    scaler: LossScaler | None = None,
    device: torch.device = CPU,
    **objective: Any,
) -> Learner:
    """A model in training on one rank. objective: further settings of ImageText"""
    objective.setdefault("normalize", normalize)
    pairs = ImageText(encoder, loss or InfoNCE(), **objective)
    precision = Precision(dtype, device, scaler)
    return Learner(ONE_PROCESS, encoder, pairs, SingleProcess(pairs), optimizer, precision)


STEP_SETTINGS = {"clip_grad_norm", "micro_batch_size", "average", "mark"}


def stepper(encoder: DualEncoder, optimizer: torch.optim.Optimizer, **settings: Any) -> Step:
    """A step on one rank. settings: of the step, or of `learner`"""
    of_step = {name: settings.pop(name) for name in STEP_SETTINGS & settings.keys()}
    return Step(learner(encoder, optimizer, **settings), LocalPool(), **of_step)
