"""Weights of a trained model: a run of clipx, one of its checkpoints, or what open_clip stores and
publishes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from clipx.checkpoints.manifest import find_checkpoint, newest_valid
from clipx.config import config
from clipx.models.hub import HUB, LOCAL, hub_file, weights_in
from clipx.models.initial._weights import fill
from clipx.types import UserError


@config
class Config:
    """What to start from."""

    path: str
    """Run folder (its newest valid checkpoint), checkpoint folder, a folder of open_clip's (also as
    `local-dir:folder`), `hf-hub:organization/repository`, or a file: `.safetensors`, `.pt`, `.pth`,
    `.bin` with the parameter names of open_clip's CustomTextCLIP or CLIP, `.npz` of big_vision's
    SigLIP."""

    def build(self) -> Checkpoint:
        return Checkpoint(self.path)


class Checkpoint:
    def __init__(self, path: str) -> None:
        self.path = path
        self._found: tuple[Path, list[str]] | None = None

    def prepare(self) -> None:
        self._found = weights_file(self.path)

    @property
    def source(self) -> str:
        assert self._found is not None, "prepare() comes first"
        return str(self._found[0])

    def load(self, model: nn.Module) -> list[str]:
        assert self._found is not None, "prepare() comes first"
        file, notices = self._found
        return [*notices, *fill(model, file)]


def weights_file(told: str) -> tuple[Path, list[str]]:
    """The file that a path means, and why newer ones were passed over. Raises UserError."""
    if told.startswith(HUB):
        return hub_file(told.removeprefix(HUB)), []
    path = Path(told.removeprefix(LOCAL))
    if path.is_file():
        return path, []
    if (path / "manifest.json").is_file():
        return find_checkpoint(path) / "model.safetensors", []
    newest, complaints = newest_valid(path / "checkpoints")
    if newest is not None:
        return newest / "model.safetensors", complaints
    file = weights_in(path)
    if file is None:
        nothing = (
            f"model.initial {path} is neither a file nor a folder with weights, such as "
            "open_clip_model.safetensors, model.safetensors or checkpoints/step_* "
            f"(looked from {Path.cwd()})"
        )
        raise UserError("\n".join([nothing, *complaints]))
    return file, []
