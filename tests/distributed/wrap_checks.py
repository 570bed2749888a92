"""What each rank computes with a model that is wrapped in either way. The test files judge it.

Arrays go back as numpy's, which need no shared memory between processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipx.checkpoints.format import LoadedCheckpoint, Training, TrainState
from clipx.checkpoints.sharded import whole
from clipx.data.preprocessing import normalize
from clipx.distributed.pool import PoolConfig, build_pool
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import Parallel, wrap
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder
from clipx.objectives import (
    image_text,
    momentum,
    momentum_pairs,
    predictive,
    siamese,
    two_view,
    weighted,
)
from clipx.objectives.objective import Objective, Parts
from clipx.objectives.views import ViewsConfig
from clipx.training.build import compile_towers
from clipx.training.ema import Ema
from clipx.training.learner import Learner
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.training.precision import build_precision
from clipx.training.step import Step, StepResult
from clipx.types import Batch

LOCAL_ROWS = 4
MODEL: dict[str, Any] = {
    "embed_dim": 8,
    "init_logit_bias": -1.0,
    "vision_cfg": {
        "image_size": 16,
        "layers": 2,
        "width": 16,
        "patch_size": 4,
        "head_width": 8,
        "patch_dropout": 0.5,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2},
}
Arrays = dict[str, np.ndarray]


def batch(step: int, *, rank: int, world_size: int, image: int | None = None) -> Batch:
    """This rank's rows of a global batch, as the data's order deals them: every world_size-th."""
    generator = torch.Generator().manual_seed(step)
    size = world_size * LOCAL_ROWS
    pixels = torch.randint(0, 256, (size, 3, 16, 16), generator=generator, dtype=torch.uint8)
    text = torch.randint(1, 49, (size, 6), generator=generator)
    text[:, 5] = 49
    mine = slice(rank, size, world_size)
    keys = [f"{step}-{row}" for row in range(size)][mine]
    views = {"image": pixels[mine], "image_2": pixels.flip(-1)[mine], "text": text[mine]}
    views["image_3"] = pixels.flip(-2)[mine]
    other = text[:, :5].flip(1)  # before the token of the end
    views["text_2"] = torch.cat([other, text[:, 5:]], 1)[mine]
    return Batch(views, keys, list(range(size))[mine], {})


class Recording(torch.optim.SGD):
    """Keeps the gradients that it was given."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective.parameters(), lr=1.0)
        self.objective, self.gradients = objective, {}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        named = {n: p.grad for n, p in self.objective.named_parameters() if p.grad is not None}
        self.gradients = whole(named, copy=torch.Tensor.cpu)


def build(
    runtime: Runtime,
    parallel: Parallel,
    optimizer: Callable[[Objective], torch.optim.Optimizer],
    *,
    objective: str = "pairs",
    precision: Any = "fp32",
    checkpointing: bool = False,
    compiled: bool = False,
    locked: tuple[str, ...] = (),
    normalize: Callable[[Tensor], Tensor] = normalize,
    **settings: Any,
) -> Step:
    torch.manual_seed(0)
    encoder = DualEncoder(MODEL)
    encoder.lock(locked)
    if checkpointing:
        encoder.set_grad_checkpointing(True)
    if compiled:
        compile_towers(encoder, backend="eager")
    chosen = build_precision(precision, runtime.device)
    if chosen.scaler is not None:
        chosen.scaler.factor = 64.0  # no overflow in the one step that is looked at
    queue = 6 if objective == "momentum pairs" else 0
    parts = Parts(encoder, MODEL["embed_dim"], InfoNCE(), normalize, queue=queue, num_samples=100)
    built = OBJECTIVES[objective].build(parts)
    built.lock_unused()
    model = wrap(built, runtime, parallel=parallel, dtype=chosen.dtype)
    averages = Ema(encoder, 0.9)
    learner = Learner(runtime, encoder, built, model, optimizer(built), chosen, averages)
    pool = build_pool(PoolConfig(), world_size=runtime.world_size)
    return Step(learner, pool, average=runtime.average, **settings)


def adamw(objective: Objective) -> torch.optim.Optimizer:
    settings = OptimConfig(weight_decay=0.5)
    optimizer = build_optimizer(objective.encoder, settings, objective.own_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    return optimizer


def arrays(tensors: dict[str, Tensor]) -> Arrays:
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}


def take(step: Step, steps: range, *, mined: bool = False) -> list[StepResult]:
    """mined: with two negatives of each row, of which odd rows have one"""
    runtime, ema = step.learner.runtime, step.learner.ema
    assert ema is not None
    results = []
    for number in steps:
        rows = batch(number, rank=runtime.rank, world_size=runtime.world_size)
        if mined:
            changed = rows.views["text"].clone()
            changed[:, 1] = 1
            negatives = torch.stack([rows.views["text_2"], changed], 1)
            counts = 2 - torch.tensor(rows.positions) % 2
            more = {"negative_text": negatives, "num_negatives": counts}
            rows = replace(rows, views=rows.views | more)
        results.append(step(rows))
        ema.update()
    return results


def gradients(
    runtime: Runtime, parallel: Parallel, *, mined: bool = False, **settings: Any
) -> dict[str, Any]:
    """Of one step, and what it told."""
    step = build(runtime, parallel, Recording, **settings)
    (stepped,) = take(step, range(1), mined=mined)
    recording = step.learner.optimizer
    assert isinstance(recording, Recording)
    metrics = {name: value.item() for name, value in stepped.metrics.items()}
    return {"gradients": arrays(recording.gradients), "metrics": metrics}


def trained(step: Step) -> dict[str, Any]:
    """Weights, averages and the objective's own state, whole."""
    learner = step.learner
    own = {}
    for name, value in whole(learner.objective.own_state(), copy=torch.Tensor.cpu).items():
        own |= {name: value} if isinstance(value, Tensor) else value  # a queue has rows by name
    weights = whole(learner.encoder.state_dict(), copy=torch.Tensor.cpu)
    assert learner.ema is not None
    averages = whole(learner.ema.state_dict(), copy=torch.Tensor.cpu)
    return {"weights": arrays(weights), "ema": arrays(averages), "own": arrays(own)}


def handed_over(
    runtime: Runtime, first: Parallel, second: Parallel, objective: str
) -> dict[str, Any]:
    """Two steps one way, a checkpoint, two steps the other way."""
    before = build(runtime, first, adamw, clip_grad_norm=0.5, objective=objective)
    take(before, range(2))
    weights, training = before.learner.collect()
    kept = [t is not None for t in weights.values()]
    assert all(kept) if runtime.is_main else not any(kept), "rank 0 alone holds it"
    # The optimizer's parts travel over a file: see test_sharded_checkpoints.py.
    optimizer = whole(before.learner.optimizer.state_dict(), copy=torch.Tensor.clone)
    training = replace(training, optimizer=optimizer)
    weights, training = runtime.from_main((dict(weights), training))
    return go_on(runtime, second, objective, weights, training)


def go_on(
    runtime: Runtime,
    parallel: Parallel,
    objective: str,
    weights: dict[str, Tensor],
    training: Training,
) -> dict[str, Any]:
    after = build(runtime, parallel, adamw, clip_grad_norm=0.5, objective=objective)
    with torch.no_grad():
        for parameter in after.learner.objective.parameters():
            parameter.zero_()  # so that what is not loaded shows
    after.learner.load(LoadedCheckpoint(Path("saved"), TrainState(), weights, training))
    take(after, range(2, 4))
    return trained(after)


SETTINGS: dict[str, dict[str, Any]] = {
    "at once": {},
    "clipped": {"clip_grad_norm": 0.01},
    "micro-batches": {"micro_batch_size": 2},
    "uneven micro-batches": {"micro_batch_size": 3},
    "checkpointing": {"checkpointing": True},
    "checkpointed micro-batches": {"checkpointing": True, "micro_batch_size": 2},
    "compiled": {"compiled": True},
    "locked": {"locked": ("visual",)},
    "locked scalars": {"locked": ("logit_scale", "logit_bias"), "micro_batch_size": 2},
    "compiled micro-batches": {"compiled": True, "micro_batch_size": 2},
    "two views": {"objective": "two views"},
    "two views in micro-batches": {"objective": "two views", "micro_batch_size": 3},
    "momentum": {"objective": "momentum", "micro_batch_size": 3},
    "momentum pairs": {"objective": "momentum pairs"},
    "predictive": {"objective": "predictive", "micro_batch_size": 3},
    "weighted": {"objective": "weighted", "micro_batch_size": 3},
    "siamese images": {"objective": "siamese images", "micro_batch_size": 3},
    "siamese texts": {"objective": "siamese texts", "micro_batch_size": 2},
    "mined negatives": {"mined": True},
    "mined negatives in micro-batches": {"mined": True, "micro_batch_size": 3},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "micro_batch_size": 2},
}
VIEWS = ViewsConfig(hidden=12, width=6, learn_temperature=True)
OBJECTIVES: dict[str, Any] = {
    "pairs": image_text.Config(),
    "two views": two_view.Config(views=VIEWS),
    "momentum": momentum.Config(views=VIEWS, momentum=0.5, queue=6, symmetric=True, predictor=True),
    "momentum pairs": momentum_pairs.Config(momentum=0.5),
    "predictive": predictive.Config(views=VIEWS, grid=3),
    "siamese images": siamese.Config(of="images"),
    "siamese texts": siamese.Config(of="texts"),
    "weighted": weighted.Config(
        objectives={"pairs": image_text.Config(), "views": two_view.Config(views=VIEWS)},
        weights={"views": 0.5},
    ),
}
KINDS: tuple[Parallel, ...] = ("ddp", "fsdp2")
HANDED: tuple[tuple[Parallel, Parallel], ...] = (("ddp", "fsdp2"), ("fsdp2", "ddp"))


def gradients_of(runtime: Runtime, case: tuple[Parallel, str]) -> dict[str, Any]:
    """case: one of KINDS, one of SETTINGS"""
    kind, name = case
    return gradients(runtime, kind, **SETTINGS[name])


def handed_over_by(runtime: Runtime, case: tuple[Parallel, Parallel, str]) -> dict[str, Any]:
    """case: one of HANDED, and one of OBJECTIVES"""
    return handed_over(runtime, *case)


def everything(runtime: Runtime) -> dict[str, Any]:
    return {
        "gradients": {
            (kind, name): gradients_of(runtime, (kind, name)) for kind in KINDS for name in SETTINGS
        },
        "handed over": {
            (pair, objective): handed_over(runtime, *pair, objective)
            for pair in HANDED
            for objective in OBJECTIVES
        },
        "poisoned": {kind: poisoned(runtime, kind) for kind in KINDS},
        "copied": copied(runtime),
    }


def poisoned(runtime: Runtime, parallel: Parallel) -> dict[str, Any]:
    """The last rank's second picture is broken."""

    def spoil(image: Tensor) -> Tensor:
        image = image.float() / 255
        if runtime.rank == runtime.world_size - 1:
            image[1] = torch.nan
        return image

    step = build(runtime, parallel, adamw, normalize=spoil)
    before = trained(step)["weights"]
    stepped = step(batch(0, rank=runtime.rank, world_size=runtime.world_size))
    after = trained(step)["weights"]
    return {
        "outcome": stepped.outcome,
        "bad_rows": stepped.bad_rows,
        "same": all(np.array_equal(before[name], after[name]) for name in before),
        "no gradient": all(p.grad is None for p in step.learner.encoder.parameters()),
    }


def copied(runtime: Runtime, _: None = None) -> dict[str, Any]:
    """What every rank evaluates of a sharded model, and what is left of the model afterwards."""
    step = build(runtime, "fsdp2", adamw)
    take(step, range(2))
    before = trained(step)
    random = torch.get_rng_state()
    with step.learner.evaluated(MODEL) as model:
        seen = arrays(model.state_dict())
        features = encoded(model)
    assert torch.equal(random, torch.get_rng_state()), "an evaluation never changes training"
    return before | {"seen": seen, "features": features, "after": trained(step)["weights"]}


def encoded(model: DualEncoder) -> np.ndarray:
    with torch.no_grad():
        return model.eval().encode_text(batch(0, rank=0, world_size=1).views["text"]).numpy()
