"""What does not go together in a run, said before the first step, all of it at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipx.distributed.wrap import chosen
from clipx.engine.config import TrainConfig
from clipx.types import UserError


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


def with_defaults(model_json: dict[str, Any], *, sigmoid: bool) -> dict[str, Any]:
    """The model's JSON with the temperature and bias that the sigmoid loss should start from
    (arXiv:2303.15343, 3.2), where it is silent: nearly all pairs are negatives, and without these
    the first steps undo that alone."""
    if not sigmoid:
        return model_json
    return {"init_logit_scale": math.log(10), "init_logit_bias": -10.0, **model_json}
