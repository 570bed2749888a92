"""The flags of open_clip_train 3.3.0, as its trainer writes them to params.txt."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipx.types import UserError

DEFAULTS: dict[str, Any] = {
    "train_data": None,
    "train_data_upsampling_factors": None,
    "val_data": None,
    "train_num_samples": None,
    "val_num_samples": None,
    "dataset_type": "auto",
    "dataset_resampled": False,
    "csv_separator": "\t",
    "csv_img_key": "filepath",
    "csv_caption_key": "title",
    "imagenet_val": None,
    "imagenet_v2": None,
    "cache_dir": None,
    "logs": "./logs/",
    "log_local": False,
    "name": None,
    "workers": 4,
    "batch_size": 64,
    "epochs": 32,
    "epochs_cooldown": None,
    "lr": None,
    "beta1": None,
    "beta2": None,
    "eps": None,
    "wd": 0.2,
    "momentum": None,
    "warmup": 10000,
    "opt": "adamw",
    "use_bn_sync": False,
    "skip_scheduler": False,
    "lr_scheduler": "cosine",
    "lr_cooldown_end": 0.0,
    "lr_cooldown_power": 1.0,
    "save_frequency": 1,
    "save_most_recent": False,
    "zeroshot_frequency": 2,
    "val_frequency": 1,
    "resume": None,
    "precision": "amp",
    "model": "RN50",
    "pretrained": "",
    "pretrained_image": False,
    "lock_image": False,
    "lock_image_unlocked_groups": 0,
    "lock_image_freeze_bn_stats": False,
    "image_mean": None,
    "image_std": None,
    "image_interpolation": None,
    "image_resize_mode": None,
    "aug_cfg": {},
    "grad_checkpointing": False,
    "local_loss": False,
    "gather_with_grad": False,
    "force_context_length": None,
    "force_image_size": None,
    "force_quick_gelu": False,
    "force_patch_dropout": None,
    "force_custom_text": False,
    "torchscript": False,
    "torchcompile": False,
    "trace": False,
    "accum_freq": 1,
    "device": "cuda",
    "dist_url": None,
    "dist_backend": None,
    "report_to": "",
    "wandb_notes": "",
    "wandb_project_name": "open-clip",
    "debug": False,
    "copy_codebase": False,
    "horovod": False,
    "ddp_static_graph": False,
    "no_set_device_rank": False,
    "seed": 0,
    "grad_clip_norm": None,
    "lock_text": False,
    "lock_text_unlocked_layers": 0,
    "lock_text_freeze_layer_norm": False,
    "log_every_n_steps": 100,
    "coca_caption_loss_weight": 2.0,
    "coca_contrastive_loss_weight": 1.0,
    "remote_sync": None,
    "remote_sync_frequency": 300,
    "remote_sync_protocol": "s3",
    "delete_previous_checkpoint": False,
    "distill_model": None,
    "distill_pretrained": None,
    "use_bnb_linear": None,
    "siglip": False,
    "loss_dist_impl": None,
}
"""By the flag's name in params.txt: --batch-size is batch_size."""

# What the trainer adds to its flags. Only world_size matters: the number of processes.
ADDED = (
    "checkpoint_path",
    "distill",
    "distributed",
    "local_rank",
    "log_level",
    "log_path",
    "rank",
    "tensorboard",
    "tensorboard_path",
    "train_sz",
    "val_sz",
    "wandb",
    "world_size",
)
_NUMBERS = (  # of which the default is None
    "lr",
    "beta1",
    "beta2",
    "eps",
    "momentum",
    "grad_clip_norm",
    "train_num_samples",
    "val_num_samples",
    "epochs_cooldown",
    "force_context_length",
    "force_patch_dropout",
)
_LISTS = ("image_mean", "image_std", "force_image_size")
_LOWEST = {"batch_size": 1, "epochs": 1, "accum_freq": 1}


@dataclass(frozen=True)
class Params:
    """The values of all flags.

    world_size: processes of the run; unknown: entries of params.txt that are no flags of 3.3.0
    """

    values: Mapping[str, Any]
    world_size: int = 1
    unknown: tuple[str, ...] = field(default=())

    def __getitem__(self, flag: str) -> Any:
        return self.values[flag]

    def is_default(self, flag: str) -> bool:
        return self.values[flag] == DEFAULTS[flag]


def read_params(path: Path) -> Params:
    """Read a params.txt. Flags that an older version did not have get their defaults. Raises
    UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--params {path} cannot be read: {reason}") from error
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator and name.isidentifier():
            # One space comes from the trainer; a tab after it may be the value of csv_separator.
            found[name] = _value(name, value.removeprefix(" "))
    if missing := [name for name in ("model", "batch_size", "epochs") if name not in found]:
        raise UserError(
            f"--params {path} has no {', '.join(missing)}: it is not the params.txt that "
            "open_clip_train writes into the folder of a run (logs/NAME/params.txt)"
        )
    world_size = found.get("world_size", 1)
    values = {name: found.get(name, default) for name, default in DEFAULTS.items()}
    faults = [fault for name in values if (fault := _fault(name, values[name]))]
    if not isinstance(world_size, int) or world_size < 1:
        faults.append(f"world_size is {world_size!r} instead of a number of processes")
    if faults:
        raise UserError("\n  ".join([f"--params {path} cannot be used:", *faults]))
    unknown = tuple(sorted(set(found) - set(DEFAULTS) - set(ADDED)))
    return Params(values, world_size, unknown)


def _value(name: str, text: str) -> Any:
    """The value that `str` turned into this text, without quotes."""
    default = DEFAULTS.get(name, 0)
    is_text = isinstance(default, str) or (default is None and name not in (*_NUMBERS, *_LISTS))
    if text == "None":
        return None
    if is_text:
        return text  # also where it reads as a number, as a run named 7 does
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _fault(name: str, value: Any) -> str | None:
    """The fault of a value, by the type of the flag's default; None if it can be used."""
    default = DEFAULTS[name]
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    is_number = is_whole or isinstance(value, float)
    expected = None
    if isinstance(default, bool):
        expected = None if isinstance(value, bool) else "True or False"
    elif isinstance(default, int):
        lowest = _LOWEST.get(name, 0)
        expected = None if is_whole and value >= lowest else f"a whole number from {lowest} on"
    elif isinstance(default, float) or (name in _NUMBERS and value is not None):
        expected = None if is_number and value >= 0 else "a number from 0 on"
    elif isinstance(default, dict):
        expected = None if isinstance(value, dict) else "a dictionary"
    elif isinstance(default, str):
        expected = None if isinstance(value, str) else "a text"
    return expected and f"{name} is {value!r} instead of {expected}"
