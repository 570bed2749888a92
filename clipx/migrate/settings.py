"""The flags of open_clip_train as a config of clipx; docs/migrate.md is the same as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.config import Data
from clipx.migrate.data_settings import data_settings, evaluator_settings
from clipx.migrate.model_settings import model_settings
from clipx.migrate.params import Params
from clipx.open_clip_flags import REASONS, VALUES
from clipx.types import UserError

SAME_HERE = (
    "dataset_type",
    "train_num_samples",
    "val_num_samples",
    "save_most_recent",
    "lock_image_freeze_bn_stats",
    "lock_text_freeze_layer_norm",
    "local_loss",
    "gather_with_grad",
    "force_custom_text",
    "dist_url",
    "dist_backend",
)
"""Flags of REASONS whose use makes no difference, so that they are not worth a line."""

Epochs = Callable[[int], str]
"""A number of epochs as a duration."""


@dataclass(frozen=True)
class Imported:
    """config: the data of a TrainConfig; model_json: the architecture, with its preprocessing
    notes: what differs from the run of open_clip, for the user
    """

    config: Data
    model_json: dict[str, Any]
    notes: list[str]


def import_settings(
    params: Params, out: Path, *, steps_per_epoch: int | None, has_checkpoint: bool
) -> Imported:
    """The config of a run in the folder `out`. Raises UserError for a run that clipx cannot train.

    steps_per_epoch: where it is known, durations are in the steps of the peer's own schedule
    has_checkpoint: the weights come from a checkpoint, and not from where the run began
    """
    notes = _notes_of_flags(params)

    def epochs(count: int) -> str:
        if steps_per_epoch is None:
            return f"{count} epochs"
        return f"{count * steps_per_epoch} steps"

    size = params["batch_size"] * params.world_size * params["accum_freq"]
    model, model_json = model_settings(params, out, notes, has_checkpoint=has_checkpoint)
    config: Data = {
        "run_dir": str(out),
        "data": data_settings(params, notes),
        "model": model,
        "duration": epochs(params["epochs"]),
        "global_batch_size": size,
        "loss": {"name": "sigmoid" if params["siglip"] else "infonce"},
        "optim": _optim(params, epochs, notes),
        "grad_checkpointing": params["grad_checkpointing"],
        "compile": "towers" if params["torchcompile"] else "none",
        "seed": params["seed"],
        "precision": _precision(params, notes),
        "device": "cpu" if params["device"] == "cpu" else "auto",
        "log_every": f"{max(1, params['log_every_n_steps'])} steps",
        "tensorboard": any(name in params["report_to"] for name in ("tensorboard", "all")),
    }
    if params["accum_freq"] > 1:
        config["micro_batch_size"] = params["batch_size"]
    if any(name in params["report_to"] for name in ("wandb", "all")):
        notes.append(f"--report-to wandb has no setting: {REASONS['wandb_project_name']}")
    if params["siglip"] and params["loss_dist_impl"]:
        pool = "ring" if params["loss_dist_impl"] in ("bidir", "shift") else "gathered"
        config["pool"] = {"kind": pool}
    if params["distill_model"] and params["distill_pretrained"]:
        teacher = f"open_clip:{params['distill_model']}/{params['distill_pretrained']}"
        config["objective"] = {"name": "distill", "teacher": teacher}
        notes.append("losses of distillation are lower by the teacher's entropy, a constant")
    config |= _checkpoints(params, epochs)
    if evaluators := evaluator_settings(params, epochs):
        config["evaluators"] = evaluators
    if params.world_size > 1 and not (params["local_loss"] and params["gather_with_grad"]):
        notes.append(
            "the gradient is that of the global loss. Without both --local-loss and "
            f"--gather-with-grad that of open_clip was another one on {params.world_size} ranks"
        )
    return Imported(config, model_json, notes)


def _notes_of_flags(params: Params) -> list[str]:
    """A line for each flag that a run has used and that has no setting."""
    notes = []
    for flag, reason in REASONS.items():
        if not params.is_default(flag) and flag not in SAME_HERE:
            notes.append(f"--{flag.replace('_', '-')} has no setting: {reason}")
    if params.unknown:
        notes.append(f"not flags of open_clip_train 3.3.0: {', '.join(params.unknown)}")
    return notes


def _checkpoints(params: Params, epochs: Epochs) -> Data:
    """How often, and how many are kept: open_clip keeps all."""
    if params["save_frequency"] == 0:  # there is always one at the end
        return {}
    every = epochs(params["save_frequency"])
    if params["delete_previous_checkpoint"]:
        return {"checkpoint_every": every, "keep_checkpoints": 1}
    return {"checkpoint_every": every, "keep_every": every}


def _optim(params: Params, epochs: Epochs, notes: list[str]) -> Data:
    kind = VALUES["opt"].get(params["opt"].lower())
    if kind is None:
        raise UserError(
            f"--opt {params['opt']}: clipx has adamw, lamb and muon (optim.kind). Change the line "
            "`opt:` of a copy of params.txt to adamw to import the rest"
        )
    optim: Data = {"kind": kind, "weight_decay": params["wd"]}
    # timm's optimizers have defaults of their own, which are not in params.txt.
    if params["lr"] is not None:
        optim["lr"] = params["lr"]
    if params["beta1"] is not None and params["beta2"] is not None:
        optim["betas"] = [params["beta1"], params["beta2"]]
    if params["eps"] is not None:
        optim["eps"] = params["eps"]
    if params["momentum"] is not None:
        if kind == "muon":
            optim["momentum"] = params["momentum"]
        else:
            notes.append(f"--momentum is without effect on {params['opt']}")
    optim["clip_grad_norm"] = params["grad_clip_norm"] or None
    optim["warmup"] = f"{max(1, params['warmup'])} steps"
    optim["schedule"] = _schedule(params, epochs, notes)
    if params["skip_scheduler"]:
        optim["warmup"] = "1 steps"  # which has the full rate
    return optim


def _schedule(params: Params, epochs: Epochs, notes: list[str]) -> Data:
    schedules = VALUES["lr_scheduler"]
    kind = schedules.get(params["lr_scheduler"])
    if kind is None:
        raise UserError(
            f"--lr-scheduler {params['lr_scheduler']} is none of {', '.join(schedules)}"
        )
    if params["skip_scheduler"]:
        return {"kind": "constant"}
    schedule: Data = {"kind": kind}
    if kind == "wsd":
        if not params["epochs_cooldown"]:
            raise UserError("--lr-scheduler const-cooldown needs the line epochs_cooldown")
        schedule["cooldown"] = epochs(params["epochs_cooldown"])
        schedule["cooldown_shape"] = "linear"
        if params["lr_cooldown_power"] != 1:
            notes.append(
                f"--lr-cooldown-power {params['lr_cooldown_power']}: the cooldown is linear "
                "(power 1) here; optim.schedule.cooldown_shape=sqrt is the other choice"
            )
        if params["lr_cooldown_end"] and params["lr"]:
            schedule["min_lr_fraction"] = params["lr_cooldown_end"] / params["lr"]
    return schedule


def _precision(params: Params, notes: list[str]) -> str:
    precision = params["precision"]
    kinds = VALUES["precision"]
    if precision not in kinds:
        raise UserError(f"--precision {precision} is none of {', '.join(kinds)}")
    if precision in ("bf16", "fp16", "pure_bf16", "pure_fp16"):
        notes.append(
            f"--precision {precision} had weights of 16 bits; clipx keeps them in float32 and "
            f"computes in {kinds[precision]}"
        )
    if precision == "fp32" and params["device"] != "cpu":
        notes.append(
            "--precision fp32: on GPUs from Ampere on open_clip rounded products to TF32, which "
            "is precision=tf32 here"
        )
    return kinds[precision]
