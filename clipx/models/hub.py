"""Files of models that lie in a folder or on the Hugging Face hub, laid out as open_clip does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipx.types import UserError

HUB, LOCAL = "hf-hub:", "local-dir:"
CONFIG = "open_clip_config.json"
# What open_clip's folders call their weights, best first; a checkpoint of clipx is found before.
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


def hub_file(repository: str, name: str | None = None) -> Path:
    """A file of a repository, downloaded unless the cache has it; by default its weights. Raises
    UserError."""
    from open_clip.pretrained import download_pretrained_from_hf

    with_name = f"{HUB}{repository}" + (f" ({name})" if name else "")
    if not repository or repository.count("/") != 1:
        raise UserError(f"{with_name} is not of the form {HUB}organization/repository")
    try:
        return Path(download_pretrained_from_hf(repository, filename=name))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{with_name} cannot be fetched: {error}\n{OFFLINE}") from error


OFFLINE = (
    "Check the name and the network (HF_TOKEN for a private repository). A machine without network "
    "needs the file in its cache (HF_HOME), or as a folder: local-dir:/path"
)


def weights_in(folder: Path) -> Path | None:
    """The weights of a folder laid out as open_clip's."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"model.name {path} does not exist (looked from {Path.cwd()})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"model.name {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"model.name {path} cannot be read: it holds no JSON object")
    return content
