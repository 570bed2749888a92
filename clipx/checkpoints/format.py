"""A checkpoint is a folder that is either complete or absent: written under another name, synced,
renamed, and verified when it is read.

checkpoints/step_00000500/
    model.safetensors        weights, by open_clip's CustomTextCLIP names
    open_clip_config.json    the architecture and the preprocessing, in open_clip's layout
    config.json, tokenizer.json ...    of a Hugging Face text tower that came from a local folder
    ema.safetensors          averages of the weights, if the run has them; `load_model` loads these
    optimizer/               the optimizer's tensors, one file per rank that holds some
    training.pt              its settings, random state of each rank, scaler, objective; loaded with
                             weights_only=True
    state.json               step, data position, corpus digest, fingerprint
    config.yaml, version.json    of the run that wrote it
    manifest.json            size and SHA-256 of every other file; written last
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clipx.checkpoints import manifest, tensor_files
from clipx.checkpoints import optimizer_state as optimizer_files
from clipx.checkpoints.manifest import find_checkpoint, seal
from clipx.checkpoints.manifest import list_checkpoints as list_checkpoints
from clipx.checkpoints.manifest import newest_valid as newest_valid
from clipx.checkpoints.manifest import verify as verify
from clipx.checkpoints.train_state import PARTS, LoadedCheckpoint, read_state, training_parts
from clipx.checkpoints.train_state import Training as Training
from clipx.checkpoints.train_state import TrainState as TrainState
from clipx.data.preprocessing import Preprocessing
from clipx.files import sync
from clipx.models.dual_encoder import DualEncoder
from clipx.models.model_json import text_files, with_text_folder
from clipx.types import UserError

_TEMPORARY_NAME = re.compile(r"\.step_[0-9]+\.[0-9]+")


@dataclass(frozen=True)
class About:
    """Facts and settings that all checkpoints of a run share.

    keep: number of newest checkpoints that are kept
    keep_every: steps that are multiples of it are never removed
    texts: name -> content of files that describe the run: config.yaml, version.json
    """

    model_json: dict[str, Any]
    keep: int = 3
    keep_every: int | None = None
    texts: Mapping[str, str] = field(default_factory=dict)


def temporary(folder: Path, step: int) -> Path:
    """The folder in which this process writes a checkpoint before it is renamed."""
    return folder / f".step_{step:08d}.{os.getpid()}"


def save(
    folder: Path,
    state: TrainState,
    weights: Mapping[str, Tensor],
    training: Training,
    about: About,
    *,
    num_writers: int = 1,
) -> Path:
    """Write `folder/step_N` atomically. Raises OSError; a partial write is removed.

    weights: the model's state_dict, with whole tensors
    num_writers: ranks that write a part of the optimizer into the `temporary` folder
    """
    target = folder / f"step_{state.step:08d}"
    unfinished = temporary(folder, state.step)
    folder.mkdir(parents=True, exist_ok=True)
    # Unfinished checkpoints of killed processes: a run folder has one writer, so none is in use.
    for path in folder.iterdir():
        is_unfinished = _TEMPORARY_NAME.fullmatch(path.name) and not path.is_symlink()
        if is_unfinished and path != unfinished:
            shutil.rmtree(path)
    try:
        unfinished.mkdir(exist_ok=True)  # another rank may have made it
        entries = _write_tensors(unfinished, weights, training)
        _write_texts(unfinished, state, about)
        entries |= optimizer_files.gather(unfinished, num_writers)
        seal(unfinished, entries)
        # A checkpoint of the same step is damaged, or the run would have continued from it.
        if target.is_dir() and manifest.is_own(target):
            manifest.remove(target)
        elif target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
            target.rmdir()
        if os.path.lexists(target):  # something that no run has written
            raise FileExistsError(f"{target} is not a checkpoint of a run; move it away")
        unfinished.rename(target)
        sync(folder)  # or a power loss could undo the rename
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, RuntimeError):  # raised by torch.save on a full disk
            raise OSError(f"{type(error).__name__}: {error}") from error
        raise
    return target


def _write_tensors(
    folder: Path, weights: Mapping[str, Tensor], training: Training
) -> dict[str, dict[str, Any]]:
    """Write all tensors. Returns the manifest's entries of the large files."""
    settings, moments = optimizer_files.split(training.optimizer)
    parts = {name: vars(training)[name] for name in PARTS}
    torch.save({**parts, "optimizer": settings}, folder / "training.pt")
    entries = {optimizer_files.file_of(0): optimizer_files.write(moments, folder, 0)}
    # The digest is computed while a file is written, so that no byte is read again.
    groups = {"model": weights}
    if training.ema is not None:
        groups["ema"] = training.ema
    for name, tensors in groups.items():
        path = folder / f"{name}.safetensors"
        digest = tensor_files.write(tensors, path)
        entries[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return entries


def _write_texts(folder: Path, state: TrainState, about: About) -> None:
    model_json = about.model_json
    model_cfg = {key: value for key, value in model_json.items() if key != "preprocess_cfg"}
    # Our names of parameters are those of CustomTextCLIP; with this open_clip loads the folder.
    model_cfg["custom_text"] = True
    config = {"model_cfg": model_cfg, "preprocess_cfg": asdict(Preprocessing.of(model_json))}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    for file in text_files(model_json):
        shutil.copy(file, folder)
    (folder / "state.json").write_text(json.dumps(asdict(state), indent=2))
    for name, text in about.texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def load(path: Path, target: optimizer_files.Target = optimizer_files.on_cpu) -> LoadedCheckpoint:
    """Load a verified checkpoint to continue training. Raises UserError if a file is broken
    although it is as its manifest lists it, and LaterVersion if a later version wrote it.

    target: makes the tensors of the optimizer that are filled, which may be parts of the whole
    """
    with _reading(path):
        state = read_state(path)
        parts = training_parts(path)
        if not (path / optimizer_files.file_of(0)).is_file():
            raise ValueError(f"{optimizer_files.file_of(0)} is missing")
        parts["optimizer"] = optimizer_files.load(path, parts["optimizer"], target)
        averages = path / "ema.safetensors"
        return LoadedCheckpoint(
            path=path,
            state=state,
            weights=load_file(path / "model.safetensors"),
            training=Training(**parts, ema=load_file(averages) if averages.exists() else None),
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of broken files into UserErrors."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch.load, safetensors and json raise almost any
        line = str(error).split("\n")[0][:300]
        text = f"checkpoint {path} cannot be read: {type(error).__name__}: {line}"
        raise UserError(text) from error


def load_model(
    path: Path | str, *, averaged: bool = True
) -> tuple[DualEncoder, dict[str, Any], TrainState]:
    """(model in eval mode, its JSON, the state of its training) of a checkpoint, or of the newest
    valid checkpoint of a run folder. Raises UserError.

    averaged: load the averages of the weights (`ema`), if the run has them
    """
    folder = find_checkpoint(Path(path))
    with _reading(folder):
        stored = json.loads((folder / "open_clip_config.json").read_text())
        model_json = {**stored["model_cfg"], "preprocess_cfg": stored["preprocess_cfg"]}
        model_json = with_text_folder(model_json, folder)
        state = read_state(folder)
        model = DualEncoder(model_json)
        weights = load_file(folder / "model.safetensors")
        if averaged and (folder / "ema.safetensors").exists():
            averages = load_file(folder / "ema.safetensors")
            weights = {name: averages[name] for name in weights}  # without their count of updates
        model.load_state_dict(weights)
    return model.eval(), model_json, state
