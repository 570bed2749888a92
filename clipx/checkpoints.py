"""A checkpoint is a folder that is either whole or absent: written beside, synced, renamed into
place, checked when read.

checkpoints/step_00000500/
    model.safetensors        weights, by open_clip's CustomTextCLIP names
    open_clip_config.json    the architecture and the preprocessing, in open_clip's layout
    config.json, tokenizer.json ...    of a Hugging Face text tower that came from a local folder
    ema.safetensors          their averages, where the run keeps them: what `load_model` loads
    optimizer.safetensors    the optimizer's tensors, by the number of their parameter
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

from clipx import tensor_files
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


def save(
    folder: Path,
    state: TrainState,
    weights: Mapping[str, Tensor],
    training: Training,
    about: About,
) -> Path:
    """Write `folder/step_N` atomically, then delete those that need not be kept. Raises OSError; a
    partial write is removed.

    weights: a model's whole state_dict
    """
    target = folder / f"step_{state.step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    try:
        temporary.mkdir()
        hashes = _write_tensors(temporary, weights, training)
        _write_texts(temporary, state, about)
        files = sorted(temporary.iterdir())
        manifest = {
            f.name: {"bytes": f.stat().st_size, "sha256": hashes.get(f.name) or _sha256(f)}
            for f in files
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        for file in [*files, temporary / "manifest.json", temporary]:
            _sync(file)
        if (
            target.exists()
        ):  # a broken one: a valid checkpoint of this step would have been resumed from
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(folder)
    except RuntimeError as error:  # what torch.save makes of a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{type(error).__name__}: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _prune(folder, about)
    return target


def _write_tensors(
    folder: Path, weights: Mapping[str, Tensor], training: Training
) -> dict[str, str]:
    """SHA-256 by file name, of the large files."""
    parts, moments = _without_moments({name: vars(training)[name] for name in _PARTS})
    groups = {"model": weights, "optimizer": moments}
    if training.ema is not None:
        groups["ema"] = training.ema
    torch.save(parts, folder / "training.pt")
    return {
        f"{name}.safetensors": tensor_files.write(tensors, folder / f"{name}.safetensors")
        for name, tensors in groups.items()
    }


def _write_texts(folder: Path, state: TrainState, about: About) -> None:
    model_json = about.model_json
    config = {
        "model_cfg": {k: v for k, v in model_json.items() if k != "preprocess_cfg"},
        "preprocess_cfg": asdict(Normalization.of(model_json)),
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


def _without_moments(parts: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the parts with names in place of the optimizer's tensors, these by name)."""
    optimizer, moments = parts["optimizer"], {}
    state: dict[Any, Any] = {}
    for number, items in optimizer.get("state", {}).items():
        named = {f"{number}.{key}": t for key, t in items.items() if isinstance(t, Tensor)}
        moments |= named
        state[number] = {key: None if f"{number}.{key}" in named else x for key, x in items.items()}
    return {**parts, "optimizer": {**optimizer, "state": state}}, moments


def _with_moments(optimizer: dict[str, Any], moments: Mapping[str, Tensor]) -> dict[str, Any]:
    state = {
        number: {key: moments.get(f"{number}.{key}", x) for key, x in items.items()}
        for number, items in optimizer["state"].items()
    }
    return {**optimizer, "state": state}


def load(path: Path) -> Checkpoint:
    """A verified checkpoint, for training."""
    parts = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    parts["optimizer"] = _with_moments(
        parts["optimizer"], load_file(path / "optimizer.safetensors")
    )
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
