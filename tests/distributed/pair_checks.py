"""Training steps of a siamese objective on R ranks, and in one process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from loss_checks import Case, Towers
from torch import Tensor

from clipx.data.sample import PairKind
from clipx.distributed.pool import LocalPool
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import wrap
from clipx.losses.multi_positive import MultiPositive
from clipx.objectives.siamese import Siamese
from clipx.types import Loss


@dataclass(frozen=True)
class PairCase:
    """losses: see `Case`, or multi_positive of labels"""

    kind: PairKind
    case: Case

    def build(self, towers: Towers) -> Siamese:
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
        other = self.case.batch(1000 + step, world_size)
        views = {"image": image, "image_2": other[0], "text": text, "text_2": other[1]}
        return views if ids is None else views | {"ids": ids}


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


def case_of(kind: PairKind, loss: str, pool: str, queue: int) -> PairCase:
    case = Case(loss, pool, local_rows=4, queue=queue, steps=3 if queue else 1)
    if loss == "multi_positive":
        case = replace(case, kinds=1)
    return PairCase(kind, case)
