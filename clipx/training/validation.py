"""Check combinations of settings before the first step, and report every conflict at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipx.checkpoints.manifest import list_checkpoints
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import chosen
from clipx.objectives.objective import data_use
from clipx.training.config import RunPlan, TrainConfig
from clipx.training.evaluation import faults_of
from clipx.types import Loss, UserError


def check(config: TrainConfig, encoder: nn.Module, *, world_size: int, num_samples: int) -> None:
    """Raise UserError with every conflict between settings.

    encoder: the model, with its locked parts locked; num_samples: of the corpus
    """
    # All conflicts are collected, so that a user corrects them in one go.
    conflicts = []
    size = config.global_batch_size
    micro = config.micro_batch_size
    batch_norm = None  # the name of the first that is trained
    for name, module in encoder.named_modules():
        if isinstance(module, _BatchNorm) and module.training and batch_norm is None:
            batch_norm = name
    if micro is not None and micro * world_size < size:
        unit = world_size * micro
        if size % unit:
            nearest = max(1, round(size / unit)) * unit
            conflicts.append(
                f"global_batch_size {size} is not a multiple of {world_size} ranks x "
                f"micro_batch_size {micro}; the nearest that fits is {nearest}"
            )
        if batch_norm is not None:
            conflicts.append(
                f"micro_batch_size {micro}: {batch_norm} is a batch norm, whose output for a "
                "sample depends on its whole batch, so that micro-batches would train another "
                "model; lock it by model.locked, choose a model without batch norm, or set "
                "micro_batch_size=null"
            )
    if world_size > 1 and chosen(config.parallel) == "fsdp2":
        if config.cache_features is not None:
            conflicts.append(
                "cache_features trains heads alone, which are too small to be worth sharding; "
                "set parallel=ddp"
            )
        if batch_norm is not None:
            conflicts.append(
                f"parallel fsdp2: the statistics of {batch_norm}, a batch norm, would differ "
                "between ranks; set parallel=ddp, or lock it by model.locked"
            )
    if config.pool.queue:
        conflicts += _queue_conflicts(config, num_samples)
    conflicts += _objective_conflicts(config)
    conflicts += data_conflicts(config)
    if config.cache_features is not None:
        heads_alone = "cache_features trains heads alone, without blocks"
        if config.grad_checkpointing:
            conflicts.append(f"{heads_alone}; set grad_checkpointing=false")
        if config.compile != "none":
            conflicts.append(f"{heads_alone}; set compile=none")
    if conflicts:
        raise UserError("\n".join(conflicts))


def _objective_conflicts(config: TrainConfig) -> list[str]:
    """Settings that the objective cannot use."""
    conflicts = []
    num_views = len(config.objective.augmentations(config.data.augmentation))
    if config.cache_features is not None and num_views > 1:
        conflicts.append(
            "cache_features keeps one view of each image, and the objective compares several; set "
            "cache_features=null, or objective=image_text"
        )
    elif config.cache_features is not None and data_use(config.objective).needs_pixels:
        conflicts.append(
            "cache_features gives features in place of pixels and token ids, which the objective "
            "needs; set cache_features=null, or objective=image_text"
        )
    if config.data.reinforced is not None:
        if config.cache_features is not None:
            conflicts.append(
                "data.reinforced has other views of an image at each visit, and cache_features "
                "keeps one; leave one of the two out"
            )
        if config.objective.augmentations(config.data.augmentation) != [config.data.augmentation]:
            conflicts.append(
                "data.reinforced has the augmentation of `data`, and the objective has its own; "
                "set data.reinforced=null, or objective=distill"
            )
    return conflicts


def data_conflicts(config: TrainConfig) -> list[str]:
    """Conflicts between the data and what the objective and the loss take of it."""
    conflicts = []
    data = config.data
    wanted = data_use(config.objective).pair_kind
    given = None if data.pair is None else data.pair.kind
    if wanted is not None and wanted != given:
        conflicts.append(
            f"the objective compares pairs of {wanted}; set data.pair_{wanted} to the names of "
            f"both, such as data.pair_{wanted}=[a, b]"
        )
    if given is not None and wanted is None:
        conflicts.append(
            f"data.pair_{given}: the objective takes no pairs; set "
            f"objective={{name: siamese, of: {given}}}, or leave it out"
        )
    if given is not None and data.reinforced is not None:
        conflicts.append(f"data.reinforced has no pairs of {given}; set data.reinforced=null")
    if given is not None and config.cache_features is not None:
        conflicts.append("cache_features keeps no pairs; set cache_features=null")
    id_kinds = config.loss.build().id_kinds if config.objective.contrasts_text else ()
    if "label" in id_kinds and data.label_field is None:
        conflicts.append(
            "the loss compares samples by their labels; set data.label_field to the field that has "
            "them, such as data.label_field=cls"
        )
    if "label" in id_kinds and config.cache_features is not None:
        conflicts.append("cache_features keeps no labels, which the loss uses; set it to null")
    if data.negatives is None:
        if data.num_negatives is not None:
            conflicts.append("data.num_negatives needs data.negatives, a file of `clipx mine`")
        return conflicts
    if not data_use(config.objective).takes_negatives:
        conflicts.append(
            "data.negatives: the objective takes no mined negatives; set objective=image_text, or "
            "data.negatives=null"
        )
    elif not config.loss.build().takes_hard_negatives:
        conflicts.append(
            "data.negatives: the loss takes no mined negatives; set loss=infonce, without "
            "label_smoothing, or data.negatives=null"
        )
    if config.cache_features is not None:
        conflicts.append("cache_features keeps no mined negatives; set cache_features=null")
    return conflicts


def _queue_conflicts(config: TrainConfig, num_samples: int) -> list[str]:
    conflicts = []
    size = config.pool.queue
    if not config.objective.contrasts_text:
        conflicts.append(
            f"pool.queue {size}: the objective has no image-text pairs to keep; set pool.queue=0"
        )
    elif not config.loss.build().takes_negatives:
        conflicts.append(
            f"pool.queue {size}: with these settings the loss compares no pairs of earlier steps; "
            "set pool.queue=0, or choose another loss"
        )
    if size > num_samples:
        conflicts.append(
            f"pool.queue {size}: the corpus has {num_samples} samples, so that rows would be their "
            "own negatives; lower it"
        )
    return conflicts


def check_plan(
    config: TrainConfig, evaluators: Mapping[str, Any], plan: RunPlan, runtime: Runtime
) -> list[str]:
    """Warnings about evaluators and durations. All ranks take part. Raises UserError if evaluators
    cannot run and the run has no checkpoint yet.

    evaluators: those of the config, on the corpus of the run
    """
    faults: list[str] = []
    has_checkpoint = False
    if runtime.is_main:
        faults = faults_of(evaluators)
        has_checkpoint = bool(list_checkpoints(Path(config.run_dir) / "checkpoints"))
    # With a checkpoint the run continues: training is worth more than a test set that has vanished.
    runtime.agree("\n".join(faults) if faults and not has_checkpoint else None)
    warnings = [f"{fault}; training goes on" for fault in runtime.from_main(faults)]
    if plan.warmup >= plan.total:
        warnings.append(
            f"optim.warmup of {plan.warmup:,} steps is not shorter than the run of "
            f"{plan.total:,}: the learning rate never reaches optim.lr"
        )
    return warnings


def with_defaults(model_json: dict[str, Any], loss: Loss) -> dict[str, Any]:
    """The model's JSON with the initial temperature and bias of arXiv:2303.15343, 3.2, where it has
    none and the loss needs them: nearly all pairs are negatives, and without a bias the first steps
    do nothing but learn that."""
    if not loss.needs_logit_bias:
        return model_json
    return {"init_logit_scale": math.log(10), "init_logit_bias": -10.0, **model_json}
