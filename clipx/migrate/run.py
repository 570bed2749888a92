"""`clipx import open_clip`: a run of open_clip_train as a folder that `clipx train` continues.

OUT/train.yaml              the config
OUT/model.json              the model, where flags changed it
OUT/checkpoints/step_N/     of --checkpoint
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
import yaml
from torch import nn

from clipx.checkpoints import format as checkpoints
from clipx.config import build
from clipx.migrate.checkpoint import (
    MOMENTS,
    PeerCheckpoint,
    moments_of,
    peer_decays,
    read_checkpoint,
    scaler_of,
    weights_of,
)
from clipx.migrate.data_settings import dataset_type
from clipx.migrate.model_settings import MODEL_FILE
from clipx.migrate.params import Params, read_params
from clipx.migrate.settings import Imported, import_settings
from clipx.models.dual_encoder import DualEncoder
from clipx.models.weights import name_in_clipx
from clipx.training.config import TrainConfig
from clipx.training.optim import build_optimizer, decays
from clipx.training.validation import with_defaults
from clipx.types import UserError

CONFIG_FILE = "train.yaml"


def import_run(params_file: Path, checkpoint: Path | None, out: Path | None) -> list[str]:
    """Import a run. Returns lines for the user. Raises UserError, before anything is written.

    params_file: the run's params.txt; checkpoint: its epoch_N.pt, or None for the config alone
    out: the new run folder; None: runs/NAME
    """
    params = read_params(params_file)
    out = out or default_folder(params, params_file)
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder; give another with --out")
    peer = read_checkpoint(checkpoint) if checkpoint is not None else None
    step, steps_per_epoch = progress(params, peer) if peer is not None else (0, None)
    imported = import_settings(
        params, out, steps_per_epoch=steps_per_epoch, has_checkpoint=peer is not None
    )
    config = build(TrainConfig, imported.config, where=f"of {params_file}")
    lines: list[str] = []
    # First, so that nothing is left behind by a checkpoint that does not fit.
    if peer is not None:
        write_checkpoint(out, config, imported, peer, step, lines)
    out.mkdir(parents=True, exist_ok=True)
    if imported.config["model"]["name"] == str(out / MODEL_FILE):
        (out / MODEL_FILE).write_text(json.dumps(imported.model_json, indent=2))
    text = yaml.safe_dump(imported.config, sort_keys=False, width=100, allow_unicode=True)
    header = f"# Imported from {params_file} of open_clip_train by `clipx import open_clip`.\n"
    (out / CONFIG_FILE).write_text(header + text, encoding="utf-8")

    lines = [f"{out / CONFIG_FILE} is the config", *lines]
    lines += [f"note: {note}" for note in imported.notes]
    if peer is None:
        lines.append("the run starts anew: give --checkpoint epoch_N.pt to go on from one")
    elif peer.epoch >= params["epochs"]:
        lines.append(
            f"all {params['epochs']} epochs are done; to train for longer, raise duration in "
            f"{out / CONFIG_FILE}"
        )
    return [*lines, f"go on with: clipx train {out / CONFIG_FILE}"]


def default_folder(params: Params, params_file: Path) -> Path:
    """runs/NAME, by the name of the run of open_clip or of its folder."""
    name = params["name"] or params_file.resolve().parent.name
    return Path("runs") / name.strip("/").replace("/", "-")


def progress(params: Params, peer: PeerCheckpoint) -> tuple[int, int | None]:
    """(step of the checkpoint, steps of an epoch). The trainer stores neither.

    The optimizer counts its updates, which are the steps, except that a step with an overflow of
    float16 is none. With shards the steps of an epoch follow from --train-num-samples too.
    """
    updates = peer.num_updates
    computed = _steps_of_shards(params)
    if peer.epoch == 0:
        return updates, computed
    if computed is not None and (not updates or (peer.scaler and updates <= computed * peer.epoch)):
        return computed * peer.epoch, computed
    if updates:
        return updates, math.ceil(updates / peer.epoch)
    raise UserError(
        f"--checkpoint {peer.path} does not count its steps (its optimizer has no state of AdamW); "
        "add a line `train_num_samples: N` to a copy of params.txt"
    )


def _steps_of_shards(params: Params) -> int | None:
    """Steps of an epoch by the trainer's own rounding; None if params.txt does not have them."""
    samples = params["train_num_samples"]
    if not samples or dataset_type(params, params["train_data"]) != "webdataset":
        return None
    batches = math.ceil(samples / (params["batch_size"] * params.world_size))
    workers = max(1, params["workers"])
    return math.ceil(batches / workers) * workers // params["accum_freq"]


def write_checkpoint(
    out: Path,
    config: TrainConfig,
    imported: Imported,
    peer: PeerCheckpoint,
    step: int,
    lines: list[str],
) -> None:
    """Write the peer's state as `out/checkpoints/step_N`. Appends what the user should know to
    `lines`. Raises UserError."""
    model_json = with_defaults(imported.model_json, config.loss.build())
    encoder = DualEncoder(model_json)
    weights = weights_of(peer, encoder)
    encoder.load_state_dict(weights)
    encoder.lock(config.model.locked, config.model.unlocked_groups)
    optimizer = build_optimizer(encoder, config.optim)
    # Other optimizers order their parameters otherwise, or have other state.
    has_moments = config.optim.kind == "adamw" and has_adamw_state(peer)
    state = moments_of(peer, encoder, optimizer) if has_moments else optimizer.state_dict()
    scaler = scaler_of(peer) if config.precision == "fp16" else {}
    path = checkpoints.save(
        out / "checkpoints",
        # No digest: the corpus that the peer has read is not one of clipx's.
        checkpoints.TrainState(step=step, position=step * config.global_batch_size),
        weights,
        checkpoints.Training(optimizer=state, random=[], scaler=scaler),
        checkpoints.About(model_json),
    )
    lines.append(f"{path} has the weights of epoch {peer.epoch}, at step {step:,}")
    if has_moments:
        count = len(state["state"])
        lines.append(f"AdamW goes on with the moments of {count} parameters")
    else:
        lines.append(
            "not carried over: the state of the optimizer, which starts anew; warm up again with "
            "optim.warmup"
        )
    if scaler:
        lines.append(f"the loss scale of float16 goes on at {scaler['factor']:g}")
    elif config.precision == "fp16":
        lines.append("not carried over: the loss scale, which the checkpoint does not have")
    lines.append(
        "not carried over: the order of the data (open_clip does not store it; clipx goes on in "
        "its own order, at the same number of samples), and the state of the random generators"
    )
    if config.optim.weight_decay and (names := decayed_by_peer_alone(peer, encoder)):
        lines.append(
            f"note: open_clip also decayed {', '.join(names)}; clipx decays matrices only, and "
            "no embeddings"
        )


def has_adamw_state(peer: PeerCheckpoint) -> bool:
    """Whether the optimizer's state is that of open_clip's own AdamW, with its two groups."""
    keys = {str(key) for items in peer.states.values() for key in items}
    return len(peer.optimizer["param_groups"]) == 2 and keys >= MOMENTS


def decayed_by_peer_alone(peer: PeerCheckpoint, encoder: DualEncoder) -> list[str]:
    """Trained parameters with weight decay in open_clip and without here."""
    tables = {id(module.weight) for module in encoder.modules() if isinstance(module, nn.Embedding)}
    parameters = dict(encoder.named_parameters())
    names = []
    for peer_name, tensor in peer.weights.items():
        name = name_in_clipx(peer_name)
        parameter: torch.Tensor | None = parameters.get(name)
        if parameter is None or not parameter.requires_grad:
            continue
        is_decayed = decays(name, parameter) and id(parameter) not in tables
        if peer_decays(peer_name, tensor) and not is_decayed:
            names.append(name)
    return names
