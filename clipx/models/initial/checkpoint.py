"""Weights of a trained model: a run of clipx, one of its checkpoints, or a file or folder that
open_clip stores or publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from clipx.checkpoints.manifest import find_checkpoint, newest_valid
from clipx.config import config
from clipx.models.hub import HUB, LOCAL, hub_file
from clipx.models.initial import Initial
from clipx.models.transformers_config import is_transformers, read_transformers_json
from clipx.models.weights import fill
from clipx.types import UserError

# Names of weights in open_clip's folders, best first.
_FILE_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


@config
class Config:
    """What to start from."""

    path: str
    """Run folder (its newest valid checkpoint), checkpoint folder, a folder of open_clip's or with
    a CLIPModel or SiglipModel of transformers (also as `local-dir:folder`),
    `hf-hub:organization/repository`, or a file: `.safetensors`, `.pt`, `.pth`, `.bin` with the
    parameter names of one of these, `.npz` of big_vision's SigLIP."""

    def build(self) -> Checkpoint:
        return Checkpoint(self.path)


class Checkpoint(Initial):
    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Path | None = None
        self._messages: list[str] = []

    def adapt(self, cfg: dict[str, Any]) -> dict[str, Any]:
        folder = Path(self._path.removeprefix(LOCAL))
        if is_transformers(folder):
            trained = read_transformers_json(folder).get("quick_gelu", False)
            configured = cfg.get("quick_gelu", False)
            if trained != configured:
                raise UserError(
                    f"model.initial {folder} was trained with quick_gelu {trained}, and the model "
                    f"has quick_gelu {configured}: use model.name local-dir:{folder}"
                )
        return cfg

    def prepare(self) -> None:
        self._file, self._messages = find_weights(self._path)

    @property
    def source(self) -> str:
        assert self._file is not None, "prepare() comes first"
        return str(self._file)

    def load(self, model: nn.Module) -> list[str]:
        assert self._file is not None, "prepare() comes first"
        return [*self._messages, *fill(model, self._file)]


def find_weights(name: str) -> tuple[Path, list[str]]:
    """The file that a path stands for, and why newer ones were skipped. Raises UserError."""
    if name.startswith(HUB):
        return hub_file(name.removeprefix(HUB)), []
    # From the most specific to the most general: file, checkpoint, run folder, open_clip's folder.
    path = Path(name.removeprefix(LOCAL))
    if path.is_file():
        return path, []
    if (path / "manifest.json").is_file():
        return find_checkpoint(path) / "model.safetensors", []
    newest, complaints = newest_valid(path / "checkpoints")
    if newest is not None:
        return newest / "model.safetensors", complaints
    for file_name in _FILE_NAMES:
        if (path / file_name).is_file():
            return path / file_name, []
    message = (
        f"model.initial {path} is neither a file nor a folder with weights, such as "
        "open_clip_model.safetensors, model.safetensors or checkpoints/step_* "
        f"(looked from {Path.cwd()})"
    )
    raise UserError("\n".join([message, *complaints]))
