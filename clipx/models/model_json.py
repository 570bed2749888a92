"""open_clip's model JSONs: the one schema for architectures, so that every model has a name
elsewhere too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipx.types import UserError


def read_model_json(name: str) -> dict[str, Any]:
    """The content of a `.json` path, or of one of open_clip's model names such as `ViT-B-32`.
    Raises UserError."""
    if name.endswith(".json"):
        return _read(Path(name))
    import open_clip

    cfg = open_clip.get_model_config(name)
    if cfg is None:
        import difflib

        close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        raise UserError(
            f"model.name {name!r} is neither a path to a .json nor a model of open_clip"
            + (f"; did you mean {' or '.join(close)}?" if close else "")
        )
    return cfg


def _read(path: Path) -> dict[str, Any]:
    try:
        cfg = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"model.name {path} does not exist (looked from {Path.cwd()})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"model.name {path} cannot be read: {error}") from error
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(cfg if isinstance(cfg, dict) else [])
    if missing:
        raise UserError(
            f"model.name {path} lacks {', '.join(sorted(missing))}: it is no open_clip model JSON"
        )
    return cfg


def image_size(cfg: dict[str, Any]) -> int:
    """Pixels along a side."""
    return cfg["vision_cfg"].get("image_size", 224)


def context_length(cfg: dict[str, Any]) -> int:
    """Most tokens of a caption, its start and end included."""
    return cfg["text_cfg"].get("context_length", 77)


def fixed_text_length(cfg: dict[str, Any]) -> int | None:
    """Tokens to which this model's captions must be padded; None where they may be cut to the
    longest of the batch.

    open_clip's own text tower adds its whole mask, and reads SigLIP's out at the last position.
    A tower of transformers hides the padding of its own tokenizer, and attends to that of another.
    """
    from clipx.models.text.transformer import FIELDS

    text_cfg = cfg["text_cfg"]
    tower = text_cfg.get("hf_model_name")
    if set(text_cfg) <= FIELDS or (tower and tower == text_cfg.get("hf_tokenizer_name")):
        return None
    return context_length(cfg)


_TEXT_FILES = (  # what transformers reads to build a text tower and its tokenizer, without weights
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
)


def text_files(cfg: dict[str, Any]) -> list[Path]:
    """The files without which a text tower from a local folder cannot be built again."""
    text_cfg = cfg["text_cfg"]
    folders = [text_cfg.get(key) for key in ("hf_model_name", "hf_tokenizer_name")]
    paths = {n: Path(f) / n for f in folders if f and Path(f).is_dir() for n in _TEXT_FILES}
    return [path for path in paths.values() if path.is_file()]


def with_text_folder(cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`cfg` with its Hugging Face text tower built from the files in `folder`, where it has any."""
    text_cfg = dict(cfg["text_cfg"])
    for key, file in (
        ("hf_model_name", "config.json"),
        ("hf_tokenizer_name", "tokenizer_config.json"),
    ):
        if text_cfg.get(key) and (folder / file).is_file():
            text_cfg[key] = str(folder)
    return {**cfg, "text_cfg": text_cfg}
