"""Weights of a trained model: a run of clipx, one of its checkpoints, or a file of open_clip's."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipx.config import config
from clipx.types import UserError

Weights = dict[str, Tensor]


@config
class Config:
    """What to start from."""

    path: str
    """Run folder (its newest checkpoint), checkpoint folder, or a `.safetensors`, `.pt`, `.pth` or
    `.bin` file with the parameter names of open_clip's CustomTextCLIP or CLIP."""

    def build(self) -> Checkpoint:
        return Checkpoint(Path(self.path))


class Checkpoint:
    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        weights_file(self.path)

    def load(self, model: nn.Module) -> None:
        weights = custom_text_names(read_weights(weights_file(self.path)))
        if faults := list(misfits(model, weights)):
            raise UserError(
                f"model.initial {self.path} does not fit the model:\n" + "\n".join(faults)
            )
        model.load_state_dict(weights)


def weights_file(path: Path) -> Path:
    """The file that a path means. Raises UserError."""
    if path.is_file():
        return path
    steps = sorted(path.glob("checkpoints/step_*/model.safetensors"))
    files = [*sorted(path.glob("model.safetensors")), *reversed(steps)]
    if not files:
        raise UserError(
            f"model.initial {path} is neither a file nor a folder with model.safetensors or "
            f"checkpoints/step_* (looked from {Path.cwd()})"
        )
    return files[0]


def read_weights(file: Path) -> Weights:
    """A state dict by name, read without running code of the file's. Raises UserError."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"model.initial {file} cannot be read as weights: {type(error).__name__}: {error}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # open_clip's own training checkpoints
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"model.initial {file} holds no state dict (names -> tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def custom_text_names(weights: Weights) -> Weights:
    """open_clip's CLIP keeps its text tower at the top; CustomTextCLIP and clipx under `text`."""
    own = ("visual.", "text.", "logit_scale", "logit_bias")
    named = {n if n.startswith(own) else f"text.{n}": tensor for n, tensor in weights.items()}
    named.pop("text.attn_mask", None)  # a buffer, made anew by the model
    return named


def misfits(model: nn.Module, weights: Weights) -> Iterator[str]:
    """One line for each parameter that is missing, unknown or of another shape."""
    wanted = model.state_dict()
    for name in [*wanted, *(n for n in weights if n not in wanted)]:
        if name not in weights:
            yield f"  {name}: not in the file"
        elif name not in wanted:
            yield f"  {name}: not in the model"
        elif wanted[name].shape != weights[name].shape:
            file, ours = tuple(weights[name].shape), tuple(wanted[name].shape)
            yield f"  {name}: {file} in the file, {ours} in the model"
