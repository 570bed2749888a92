"""open_clip's model JSONs, the schema of all architectures, so that each has a name elsewhere
too."""

from __future__ import annotations

import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any

from clipx.models.hub import HUB, LOCAL, hub_file
from clipx.models.model_schema import find_faults
from clipx.types import UserError

FILE_NAME = "open_clip_config.json"
REQUIRED = {"embed_dim", "vision_cfg", "text_cfg"}
# custom_text: all clipx models have their text tower under `text`; preprocess_cfg is read by
# clipx.data.preprocessing; a logit_scale of shape (1,) is loaded as a scalar.
IGNORED = {"custom_text", "preprocess_cfg", "nonscalar_logit_scale"}
KNOWN = REQUIRED | IGNORED | {"quick_gelu", "init_logit_scale", "init_logit_bias"}


def read_model_json(name: str) -> dict[str, Any]:
    """The JSON of a model, with `preprocess_cfg` where its folder has one. Raises UserError.

    name: one of open_clip's models such as `ViT-B-32`, a `.json` path, `local-dir:folder` or
    `hf-hub:organization/repository`; the folder and the repository have an open_clip_config.json,
    as checkpoints of clipx do, or the folder is a CLIPModel or SiglipModel of transformers
    """
    if name.startswith(HUB):
        return _checked(name, read_json(hub_file(name.removeprefix(HUB), FILE_NAME)))
    if name.startswith(LOCAL):
        from clipx.models.transformers_config import is_transformers, read_transformers_json

        folder = Path(name.removeprefix(LOCAL))
        if is_transformers(folder):
            return _checked(name, read_transformers_json(folder))
        return with_text_folder(_checked(name, read_json(folder / FILE_NAME)), folder)
    if name.endswith(".json"):
        return _checked(name, read_json(Path(name)))
    import open_clip

    cfg = open_clip.get_model_config(name.replace("/", "-"))  # OpenAI writes ViT-B/32
    if cfg is None:
        raise _unknown_model(name, open_clip.list_models())
    return _checked(name, cfg)


def check_model_name(name: str) -> None:
    """Raise the UserError of `read_model_json` as far as it needs neither open_clip, which imports
    torch, nor a network."""
    if name.startswith((HUB, LOCAL)):
        return
    if name.endswith(".json"):
        read_model_json(name)
        return
    spec = importlib.util.find_spec("open_clip")  # which does not import it
    if spec is None or spec.origin is None:
        return
    files = (Path(spec.origin).parent / "model_configs").glob("*.json")
    names = sorted(file.stem for file in files)
    if names and name.replace("/", "-") not in names:
        raise _unknown_model(name, names)


def _unknown_model(name: str, names: list[str]) -> UserError:
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return UserError(
        f"model.name {name!r} is neither a path to a .json nor a model of open_clip{hint}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"model file {path} does not exist (looked from {Path.cwd()})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"model file {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"model file {path} cannot be read: it holds no JSON object")
    return content


def _checked(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """A model JSON, or the model and preprocessing of an open_clip_config.json in one. Raises
    UserError."""
    model_cfg = content.get("model_cfg", content)
    if not isinstance(model_cfg, dict):
        raise UserError(f"model.name {name}: model_cfg must be a mapping, not {model_cfg!r}")
    cfg = dict(model_cfg)
    if content.get("preprocess_cfg"):
        cfg["preprocess_cfg"] = content["preprocess_cfg"]
    missing = REQUIRED - set(cfg)
    if missing:
        raise UserError(
            f"model.name {name} lacks {', '.join(sorted(missing))}: it is no open_clip model JSON"
        )
    if "multimodal_cfg" in cfg:
        raise UserError(
            f"model.name {name} is a CoCa, with a decoder that writes captions (multimodal_cfg); "
            "clipx trains image-text encoders: choose the model without it"
        )
    # A key that is ignored would be a setting that silently does nothing.
    unknown = set(cfg) - KNOWN
    if unknown:
        raise UserError(
            f"model.name {name} has keys that clipx does not know: {', '.join(sorted(unknown))}; "
            f"it knows {', '.join(sorted(KNOWN))}"
        )
    faults = find_faults(cfg)
    if faults:
        raise UserError("\n  ".join([f"model.name {name} does not describe a model:", *faults]))
    # One number, present in all: the loader and the towers read it.
    cfg["vision_cfg"] = {**cfg["vision_cfg"], "image_size": image_size(cfg)}
    return cfg


def image_size(cfg: dict[str, Any]) -> int:
    """Pixels along a side. Raises UserError."""
    size = cfg["vision_cfg"].get("image_size", 224)
    if not isinstance(size, list | tuple):
        return int(size)
    if len(set(size)) > 1:
        raise UserError(f"vision_cfg.image_size {size} is not square; give one number")
    return int(size[0])


def context_length(cfg: dict[str, Any]) -> int:
    """Largest number of tokens of a caption, with its start and end."""
    return cfg["text_cfg"].get("context_length", 77)


# Settings that describe no tower: they are about the tokenizer, or about CoCa's decoder.
_NOT_OF_A_TOWER = {"output_tokens", "pad_id", "eos_id", "hf_tokenizer_name", "tokenizer_kwargs"}


def describes(settings: dict[str, Any], fields: set[str], neutral: dict[str, Any]) -> bool:
    """Whether settings describe a tower that implements `fields`, and others only at their
    neutral values."""
    for key, value in settings.items():
        if key in fields or key in _NOT_OF_A_TOWER:
            continue
        if key not in neutral or value != neutral[key]:
            return False
    return True


def fixed_text_length(cfg: dict[str, Any]) -> int | None:
    """Number of tokens that captions must be padded to; None if padding changes no embedding, so
    that captions may be cut to the longest of the batch."""
    text_cfg = cfg["text_cfg"]
    tokenizer = text_cfg.get("hf_tokenizer_name")
    tower = text_cfg.get("hf_model_name")
    if tower:
        # A tower of transformers masks the padding of its own tokenizer only.
        return None if tower == tokenizer else context_length(cfg)
    # Without a causal mask all tokens see padding, and SigLIP uses the last position.
    is_causal = not (text_cfg.get("no_causal_mask") or text_cfg.get("embed_cls"))
    pool = text_cfg.get("pool_type", "argmax")
    # `argmax` finds the end token only if it has the highest id, as in CLIP's own tokenizer.
    ends_at_eos = pool == "eos" or (pool == "argmax" and not tokenizer)
    return None if is_causal and ends_at_eos else context_length(cfg)


# Files that transformers needs to build a text tower and its tokenizer, without weights.
_TEXT_FILES = (
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
    paths: dict[str, Path] = {}
    for key in ("hf_model_name", "hf_tokenizer_name"):
        folder = cfg["text_cfg"].get(key)
        if folder and Path(folder).is_dir():
            for name in _TEXT_FILES:
                paths[name] = Path(folder) / name
    return [path for path in paths.values() if path.is_file()]


def with_text_folder(cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build a Hugging Face text tower from the files in `folder`, if they are there, and without
    pretrained weights: those of the folder replace them."""
    # Where the model was trained, its text tower came from a folder that may not exist here.
    text_cfg = dict(cfg["text_cfg"])
    if text_cfg.get("hf_model_name") and (folder / "config.json").is_file():
        text_cfg["hf_model_name"] = str(folder)
    if text_cfg.get("hf_tokenizer_name") and (folder / "tokenizer_config.json").is_file():
        text_cfg["hf_tokenizer_name"] = str(folder)
    return without_pretrained_towers({**cfg, "text_cfg": text_cfg})


def without_pretrained_towers(cfg: dict[str, Any]) -> dict[str, Any]:
    """Build towers with random weights, because weights of the whole model follow."""
    vision_cfg = dict(cfg["vision_cfg"])
    text_cfg = dict(cfg["text_cfg"])
    if text_cfg.get("hf_model_name"):
        text_cfg["hf_model_pretrained"] = False
    if vision_cfg.get("timm_model_name"):
        vision_cfg["timm_model_pretrained"] = False
    return {**cfg, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
