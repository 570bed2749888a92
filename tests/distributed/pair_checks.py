"""Training steps with siamese pairs, and with mined negatives, on R ranks and in one process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from loss_checks import Case, Towers
from torch import Tensor

from clipx.data.sample import PairKind
from clipx.distributed.pool import LocalPool
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import wrap
from clipx.losses.multi_positive import MultiPositive
from clipx.objectives.objective import Objective
from clipx.objectives.siamese import Siamese
from clipx.types import Loss

NUM_NEGATIVES = 2  # of each image


@dataclass(frozen=True)
class PairCase:
    """kind: of siamese pairs; None for images and texts with mined negatives
    case: with its losses, or multi_positive of labels
    """

    kind: PairKind | None
    case: Case

    def build(self, towers: Towers) -> Objective:
        if self.kind is None:
            return self.case.build_objective(towers)
        loss: Loss = self.case.build_loss()
        if self.case.loss == "multi_positive":
            loss = MultiPositive("label", 0.5)
        objective = Siamese(
            towers,
            loss,
            self.kind,
            normalize=lambda image: image,
            queue=self.case.queue,
        )
        objective.lock_unused()
        return objective

    def views(self, step: int, world_size: int) -> dict[str, Tensor]:
        """Of all ranks."""
        image, text, ids = self.case.batch(step, world_size)
        if self.kind is None:
            return {"image": image, "text": text, **mined(step, len(text))}
        other = self.case.batch(1000 + step, world_size)
        views = {"image": image, "image_2": other[0], "text": text, "text_2": other[1]}
        return views if ids is None else views | {"ids": ids}


def mined(step: int, num_rows: int) -> dict[str, Tensor]:
    """Inputs of the text tower for the negatives of each image, with ids of which many are
    equal."""
    generator = torch.Generator().manual_seed(step)
    shape = (num_rows, NUM_NEGATIVES)
    return {
        "negative_text": torch.randn(*shape, 4, generator=generator, dtype=torch.float64),
        "row_ids": torch.randint(0, 9, (num_rows, 2), generator=generator),
        "column_ids": torch.randint(0, 9, (*shape, 2), generator=generator),
    }


def train_pairs(runtime: Runtime, given: PairCase) -> dict[str, Any]:
    """The loss and the gradients of the last step, on one rank."""
    towers = Towers.of(given.case).to(runtime.device)
    objective = given.build(towers)
    model = wrap(objective, runtime)
    rank = slice(runtime.rank, None, runtime.world_size)
    pool = given.case.build_pool(runtime.world_size)
    loss = 0.0
    for step in range(given.case.steps):
        towers.zero_grad()
        views = given.views(step, runtime.world_size)
        features = model({name: rows[rank].to(runtime.device) for name, rows in views.items()})
        out = objective.loss(features, pool)
        out.loss.backward()
        model.finish_gradients()
        loss = out.loss.item()
    return {"loss": loss, "gradients": gradients(towers)}


def in_one_process(given: PairCase, world_size: int) -> dict[str, Any]:
    towers = Towers.of(given.case)
    objective = given.build(towers)
    loss = 0.0
    for step in range(given.case.steps):
        towers.zero_grad()
        out = objective.loss(objective.embed(given.views(step, world_size)), LocalPool())
        out.loss.backward()
        loss = out.loss.item()
    return {"loss": loss, "gradients": gradients(towers)}


def gradients(towers: Towers) -> dict[str, Any]:
    named = towers.named_parameters()
    return {name: p.grad.cpu().numpy() for name, p in named if p.grad is not None}


def case_of(kind: PairKind | None, loss: str, pool: str, queue: int) -> PairCase:
    case = Case(loss, pool, local_rows=4, queue=queue, steps=3 if queue else 1)
    if loss == "multi_positive":
        case = replace(case, kinds=1)
    return PairCase(kind, case)
