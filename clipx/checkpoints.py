"""A checkpoint is a folder that is either whole or absent: written beside, synced, renamed into
place, checked when read.

checkpoints/step_00000500/
    model.safetensors        weights, by open_clip's CustomTextCLIP names
    open_clip_config.json    the architecture and the preprocessing, in open_clip's layout
    config.json, tokenizer.json ...    of a Hugging Face text tower that came from a local folder
    ema.safetensors          their averages, where the run keeps them: what `load_model` loads
    optimizer/               the optimizer's tensors, a file of each rank that holds some
    training.pt              its settings, random state of each rank, scaler and pool; loaded with
                             weights_only=True
    state.json               step, data position, corpus digest, fingerprint
    config.yaml, version.json    of the run that wrote it
    manifest.json            size and SHA-256 of every other file; written last
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clipx import optimizer_files, tensor_files
from clipx.data.preprocessing import Preprocessing
from clipx.manifest import find_checkpoint, list_checkpoints, seal, sync
from clipx.manifest import newest_valid as newest_valid
from clipx.manifest import verify as verify
from clipx.models.dual_encoder import DualEncoder
from clipx.models.model_json import text_files, with_text_folder
from clipx.types import UserError

_PARTS = ("optimizer", "random", "scaler", "pool")
"""Fields of `Training` in training.pt."""


@dataclass(frozen=True)
class TrainState:
    """Where training is. Everything else follows from it, the config and the corpus.

    position: samples trained on, which is also the next position of the data order
    fingerprint: order-free sum over all samples trained on of a hash of (position, key), mod 2^63
    skipped_steps: left out because the loss or its gradient was not finite; overflowed_steps: left
    out because float16's range ended; clamped_steps: since the last log line
    """

    step: int = 0
    position: int = 0
    fingerprint: int = 0
    corpus_digest: str = ""
    skipped_steps: int = 0
    overflowed_steps: int = 0
    nonfinite_in_a_row: int = 0
    clamped_steps: int = 0


@dataclass(frozen=True)
class Training:
    """What only training needs of a checkpoint, on the CPU.

    optimizer: its state_dict; in place of its tensors it may have this rank's `Part`s of them
    random: of each rank; scaler, pool: empty where a run has none; ema: the averages of the
    weights by name, None where a run keeps none
    """

    optimizer: dict[str, Any]
    random: list[dict[str, Any]]
    scaler: dict[str, Any] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on."""

    path: Path
    state: TrainState
    weights: dict[str, Tensor]
    training: Training


@dataclass(frozen=True)
class About:
    """What all checkpoints of a run have alike.

    keep: how many of the newest stay; keep_every: those of its multiples stay for good
    texts: further files by name, of which nothing is read again: config.yaml, version.json
    """

    model_json: dict[str, Any]
    keep: int = 3
    keep_every: int | None = None
    texts: Mapping[str, str] = field(default_factory=dict)


def temporary(folder: Path, step: int) -> Path:
    """Where this process writes a checkpoint before it is one."""
    return folder / f".{_name(step)}.{os.getpid()}"


def _name(step: int) -> str:
    return f"step_{step:08d}"


def save(
    folder: Path,
    state: TrainState,
    weights: Mapping[str, Tensor],
    training: Training,
    about: About,
    *,
    num_writers: int = 1,
) -> Path:
    """Write `folder/step_N` atomically, then delete those that need not be kept. Raises OSError; a
    partial write is removed.

    weights: a model's whole state_dict
    num_writers: ranks that write their part of the optimizer; the others by `save_part`
    """
    target, beside = folder / _name(state.step), temporary(folder, state.step)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder, but=beside)
    try:
        beside.mkdir(exist_ok=True)  # another rank may have been faster
        known = _write_tensors(beside, weights, training)
        _write_texts(beside, state, about)
        known |= optimizer_files.gather(beside, num_writers)
        seal(beside, known)
        if target.exists():  # broken: a valid one of this step would have been resumed from
            shutil.rmtree(target)
        beside.rename(target)
        sync(folder)
    except RuntimeError as error:  # what torch.save makes of a full disk
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(f"{type(error).__name__}: {error}") from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _prune(folder, about)
    return target


def save_part(beside: Path, training: Training, rank: int) -> None:
    """What another rank than 0 has of the optimizer, into the `temporary` of rank 0. Raises
    OSError."""
    optimizer_files.write_for_rank_0(optimizer_files.split(training.optimizer)[1], beside, rank)


def _write_tensors(
    folder: Path, weights: Mapping[str, Tensor], training: Training
) -> dict[str, dict[str, Any]]:
    """What the manifest says of the large files."""
    settings, moments = optimizer_files.split(training.optimizer)
    parts = {name: vars(training)[name] for name in _PARTS}
    torch.save({**parts, "optimizer": settings}, folder / "training.pt")
    known = {optimizer_files.file_of(0): optimizer_files.write(moments, folder, 0)}
    groups = {"model": weights} | ({} if training.ema is None else {"ema": training.ema})
    for name, tensors in groups.items():
        path = folder / f"{name}.safetensors"
        digest = tensor_files.write(tensors, path)
        known[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return known


def _write_texts(folder: Path, state: TrainState, about: About) -> None:
    model_json = about.model_json
    config = {
        # custom_text: so are the parameters named, and open_clip loads the folder as it is
        "model_cfg": {k: v for k, v in model_json.items() if k != "preprocess_cfg"}
        | {"custom_text": True},
        "preprocess_cfg": Preprocessing.of(model_json).as_cfg(),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    for file in text_files(model_json):
        shutil.copy(file, folder)
    (folder / "state.json").write_text(json.dumps(asdict(state), indent=2))
    for name, text in about.texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _prune(folder: Path, about: About) -> None:
    for old in list_checkpoints(folder)[: -about.keep]:
        step = int(old.name.removeprefix("step_"))
        if about.keep_every is None or step % about.keep_every:
            shutil.rmtree(old)


def load(path: Path, target: optimizer_files.Target = optimizer_files.on_cpu) -> Checkpoint:
    """A verified checkpoint, for training.

    target: where each tensor of the optimizer goes: this rank may want a part of it only
    """
    parts = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    parts["optimizer"] = optimizer_files.load(path, parts["optimizer"], target)
    averages = path / "ema.safetensors"
    return Checkpoint(
        path=path,
        state=TrainState(**json.loads((path / "state.json").read_text())),
        weights=load_file(path / "model.safetensors"),
        training=Training(**parts, ema=load_file(averages) if averages.exists() else None),
    )


def load_model(
    path: Path | str, *, averaged: bool = True
) -> tuple[DualEncoder, dict[str, Any], TrainState]:
    """(model in eval mode, its JSON, where its training was) of a run folder, its newest valid
    checkpoint, or of a checkpoint. Raises UserError.

    averaged: the averages of the weights, where the run kept them (`ema`), instead of the weights
    """
    folder = find_checkpoint(Path(path))
    try:
        stored = json.loads((folder / "open_clip_config.json").read_text())
        model_json = {**stored["model_cfg"], "preprocess_cfg": stored["preprocess_cfg"]}
        model_json = with_text_folder(model_json, folder)
        state = TrainState(**json.loads((folder / "state.json").read_text()))
        model = DualEncoder(model_json)
        weights = load_file(folder / "model.safetensors")
        if averaged and (folder / "ema.safetensors").exists():
            averages = load_file(folder / "ema.safetensors")
            weights = {name: averages[name] for name in weights}
        model.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {folder} cannot be read: {type(error).__name__}: {error}"
        ) from error
    return model.eval(), model_json, state


def _remove_leftovers(folder: Path, *, but: Path) -> None:
    """Half-written folders of killed processes. One run folder has one writer, so none of them is
    in use."""
    for path in folder.glob(".step_*"):
        if path != but:
            shutil.rmtree(path)
