"""A checkpoint is a folder that is either whole or absent: written beside, synced, renamed into
place, checked when read.

checkpoints/step_00000500/
    model.safetensors        weights, by open_clip's CustomTextCLIP names
    open_clip_config.json    the architecture and the preprocessing, in open_clip's layout
    config.json, tokenizer.json ...    of a Hugging Face text tower that came from a local folder
    training.pt              optimizer and random state, loaded with weights_only=True
    state.json               step, data position, corpus digest, fingerprint
    manifest.json            size and SHA-256 of every other file; written last
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from clipx.data.transforms import Normalization
from clipx.manifest import find_checkpoint, list_checkpoints
from clipx.manifest import newest_valid as newest_valid
from clipx.manifest import sha256 as _sha256
from clipx.manifest import verify as verify
from clipx.models.dual_encoder import DualEncoder
from clipx.models.model_json import text_files, with_text_folder
from clipx.types import UserError


@dataclass(frozen=True)
class TrainState:
    """Where training is. Everything else follows from it, the config and the corpus.

    position: samples trained on, which is also the next position of the data order
    fingerprint: order-free sum over all samples trained on of a hash of (position, key), mod 2^63
    """

    step: int = 0
    position: int = 0
    fingerprint: int = 0
    corpus_digest: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on."""

    path: Path
    state: TrainState
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    random: list[dict[str, Any]]


def save(
    folder: Path,
    state: TrainState,
    model: nn.Module,
    model_json: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    random: list[dict[str, Any]],
    *,
    keep: int,
) -> Path:
    """Write `folder/step_N` atomically, then delete all but the newest `keep`. Raises OSError; a
    partial write is removed."""
    target = folder / f"step_{state.step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    try:
        temporary.mkdir()
        weights = {
            name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
        }
        save_file(weights, temporary / "model.safetensors")
        torch.save(
            {"optimizer": optimizer.state_dict(), "random": random}, temporary / "training.pt"
        )
        preprocess = asdict(Normalization.of(model_json))
        config = {
            # custom_text: so are the parameters named, and open_clip loads the folder as it is
            "model_cfg": {k: v for k, v in model_json.items() if k != "preprocess_cfg"}
            | {"custom_text": True},
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


def load(path: Path) -> Checkpoint:
    """A verified checkpoint, for training."""
    training = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    return Checkpoint(
        path=path,
        state=TrainState(**json.loads((path / "state.json").read_text())),
        weights=load_file(path / "model.safetensors"),
        optimizer=training["optimizer"],
        random=training["random"],
    )


def load_model(path: Path | str) -> tuple[DualEncoder, dict[str, Any], TrainState]:
    """(model in eval mode, its JSON, where its training was) of a run folder, its newest valid
    checkpoint, or of a checkpoint.

    Raises UserError.
    """
    folder = find_checkpoint(Path(path))
    try:
        stored = json.loads((folder / "open_clip_config.json").read_text())
        model_json = {**stored["model_cfg"], "preprocess_cfg": stored["preprocess_cfg"]}
        model_json = with_text_folder(model_json, folder)
        state = TrainState(**json.loads((folder / "state.json").read_text()))
        model = DualEncoder(model_json)
        model.load_state_dict(load_file(folder / "model.safetensors"))
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
