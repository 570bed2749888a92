"""A checkpoint is a folder that is either whole or absent: written beside, synced, renamed into
place, checked when read.

checkpoints/step_00000500/
    model.safetensors        weights, by open_clip's CustomTextCLIP names
    open_clip_config.json    the architecture and the preprocessing, in open_clip's layout
    config.json, tokenizer.json ...    of a Hugging Face text tower that came from a local folder
    ema.safetensors          their averages, where the run keeps them: what `load_model` loads
    training.pt              optimizer, random state, scaler and pool, loaded with weights_only=True
    state.json               step, data position, corpus digest, fingerprint
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipx.data.transforms import Normalization
from clipx.manifest import find_checkpoint, list_checkpoints
from clipx.manifest import newest_valid as newest_valid
from clipx.manifest import sha256 as _sha256
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
    """What only training needs of a checkpoint, whole and on the CPU.

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


def save(
    folder: Path,
    state: TrainState,
    weights: Mapping[str, Tensor],
    model_json: dict[str, Any],
    training: Training,
    *,
    keep: int,
) -> Path:
    """Write `folder/step_N` atomically, then delete all but the newest `keep`. Raises OSError; a
    partial write is removed.

    weights: a model's whole state_dict
    """
    target = folder / f"step_{state.step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    try:
        temporary.mkdir()
        _save_tensors(weights, temporary / "model.safetensors")
        if training.ema is not None:
            _save_tensors(training.ema, temporary / "ema.safetensors")
        parts = {name: vars(training)[name] for name in _PARTS}
        torch.save(parts, temporary / "training.pt")
        preprocess = asdict(Normalization.of(model_json))
        config = {
            "model_cfg": {k: v for k, v in model_json.items() if k != "preprocess_cfg"},
            "preprocess_cfg": preprocess,
        }
        (temporary / "open_clip_config.json").write_text(json.dumps(config, indent=2))
        for file in text_files(model_json):
            shutil.copy(file, temporary)
        (temporary / "state.json").write_text(json.dumps(asdict(state), indent=2))
        files = sorted(temporary.iterdir())
        manifest = {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        for file in [*files, temporary / "manifest.json", temporary]:
            _sync(file)
        if (
            target.exists()
        ):  # a broken one: a valid checkpoint of this step would have been resumed from
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(folder)
    except (RuntimeError, SafetensorError) as error:  # what their writers make of a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{type(error).__name__}: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def load(path: Path) -> Checkpoint:
    """A verified checkpoint, for training."""
    parts = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
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


def _remove_leftovers(folder: Path) -> None:
    """Half-written folders of killed processes. One run folder has one writer, so none of them is
    in use."""
    for path in folder.glob(".step_*"):
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
