"""What does not go together in a run, said before the first step, all of it at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipx.checkpoints.manifest import list_checkpoints
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import chosen
from clipx.training.config import Plan, TrainConfig
from clipx.training.evaluation import faults_of
from clipx.types import Loss, UserError


def check(config: TrainConfig, encoder: nn.Module, *, world_size: int) -> None:
    """Raises UserError with every complaint.

    encoder: the model, with its locked parts locked
    """
    complaints = [
        *_micro_batches(config, encoder, world_size),
        *_sharding(config, encoder, world_size),
    ]
    complaints += _cached_features(config)
    if complaints:
        raise UserError("\n".join(complaints))


def check_plan(config: TrainConfig, plan: Plan, runtime: Runtime) -> list[str]:
    """Warnings about evaluators and durations. All ranks take part. Raises UserError."""
    warnings = _check_evaluators(config, runtime)
    if plan.warmup >= plan.total:
        warnings.append(
            f"optim.warmup of {plan.warmup:,} steps is not shorter than the run of "
            f"{plan.total:,}: the learning rate never reaches optim.lr"
        )
    return warnings


def _check_evaluators(config: TrainConfig, runtime: Runtime) -> list[str]:
    """Messages about evaluators that cannot run, found by rank 0. Raises UserError with all of them
    where the run has no checkpoint yet.

    A run that has one goes on: a test set that has vanished since is worth less than training.
    """
    faults: list[str] = []
    has_begun = False
    if runtime.is_main:
        faults = faults_of(config.evaluators)
        has_begun = bool(list_checkpoints(Path(config.run_dir) / "checkpoints"))
    runtime.agree("\n".join(faults) if faults and not has_begun else None)
    return [f"{fault}; training goes on" for fault in runtime.from_main(faults)]


def _micro_batches(config: TrainConfig, encoder: nn.Module, world_size: int) -> Iterator[str]:
    size, micro = config.global_batch_size, config.micro_batch_size
    if micro is None or micro * world_size >= size:
        return
    if size % (world_size * micro):
        unit = world_size * micro
        nearest = max(1, round(size / unit)) * unit
        yield (
            f"global_batch_size {size} is not a multiple of {world_size} ranks x "
            f"micro_batch_size {micro}; the nearest that fits is {nearest}"
        )
    if name := trained_batch_norm(encoder):
        yield (
            f"micro_batch_size {micro}: {name} is a batch norm, whose output for a sample depends "
            "on its whole batch, so that micro-batches would train another model; lock it by "
            "model.locked, choose a model without batch norm, or set micro_batch_size=null"
        )


def _sharding(config: TrainConfig, encoder: nn.Module, world_size: int) -> Iterator[str]:
    if world_size == 1 or chosen(config.parallel) == "ddp":
        return
    if config.cache_features is not None:
        yield (
            "cache_features trains heads alone, which are too small to be worth sharding; "
            "set parallel=ddp"
        )
    if name := trained_batch_norm(encoder):
        yield (
            f"parallel fsdp2: the statistics of {name}, a batch norm, would differ between ranks; "
            "set parallel=ddp, or lock it by model.locked"
        )


def _cached_features(config: TrainConfig) -> Iterator[str]:
    if config.cache_features is None:
        return
    if config.grad_checkpointing:
        yield "cache_features trains heads alone, without blocks; set grad_checkpointing=false"
    if config.compile != "none":
        yield "cache_features trains heads alone, without blocks; set compile=none"


def trained_batch_norm(encoder: nn.Module) -> str | None:
    """The name of the first layer that normalizes by its batch, if there is one."""
    for name, module in encoder.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            return name
    return None


def with_defaults(model_json: dict[str, Any], loss: Loss) -> dict[str, Any]:
    """The model's JSON with the initial temperature and bias of arXiv:2303.15343, 3.2, where it has
    none and the loss needs them: nearly all pairs are negatives, and without a bias the first steps
    do nothing but learn that."""
    if not loss.needs_logit_bias:
        return model_json
    return {"init_logit_scale": math.log(10), "init_logit_bias": -10.0, **model_json}
