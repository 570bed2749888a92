"""Files of models on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from clipx.types import UserError

HUB = "hf-hub:"
LOCAL = "local-dir:"
OPEN_CLIP = "open_clip:"
PREFIXES = (OPEN_CLIP, LOCAL, HUB)
"""Of models that have a name instead of a path."""
OFFLINE = (
    "Check the name and the network (HF_TOKEN for a private repository). A machine without network "
    "needs the file in its cache (HF_HOME), or as a folder: local-dir:/path"
)


def hub_file(repository: str, name: str | None = None) -> Path:
    """A file of a repository, by default its weights; downloaded unless it is in the cache. Raises
    UserError."""
    from open_clip.pretrained import download_pretrained_from_hf

    shown = f"{HUB}{repository}"
    if name is not None:
        shown += f" ({name})"
    if not repository or repository.count("/") != 1:
        raise UserError(f"{shown} is not of the form {HUB}organization/repository")
    try:
        return Path(download_pretrained_from_hf(repository, filename=name))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{shown} cannot be fetched: {error}\n{OFFLINE}") from error
