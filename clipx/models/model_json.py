"""open_clip's model JSONs: the one schema for architectures, so that every model has a name
elsewhere too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipx.models.hub import CONFIG, HUB, LOCAL, hub_file, read_json
from clipx.models.model_schema import faults
from clipx.types import UserError

REQUIRED = {"embed_dim", "vision_cfg", "text_cfg"}
# custom_text: every clipx model has its text tower under `text`; preprocess_cfg is the business of
# clipx.data.preprocessing; a logit_scale of shape (1,) is loaded as a scalar.
IGNORED = {"custom_text", "preprocess_cfg", "nonscalar_logit_scale"}
KNOWN = REQUIRED | IGNORED | {"quick_gelu", "init_logit_scale", "init_logit_bias"}


def read_model_json(name: str) -> dict[str, Any]:
    """The model that a name means, with `preprocess_cfg` where its folder has one. Raises
    UserError.

    name: of one of open_clip's models such as `ViT-B-32`, a `.json` path, `local-dir:folder` or
    `hf-hub:organization/repository`; the folder and the repository hold open_clip_config.json, as a
    checkpoint of clipx does
    """
    if name.startswith(HUB):
        return _checked(name, read_json(hub_file(name.removeprefix(HUB), CONFIG)))
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL))
        return with_text_folder(_checked(name, read_json(folder / CONFIG)), folder)
    if name.endswith(".json"):
        return _checked(name, read_json(Path(name)))
    import open_clip

    cfg = open_clip.get_model_config(name.replace("/", "-"))  # OpenAI writes ViT-B/32
    if cfg is None:
        import difflib

        close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        raise UserError(
            f"model.name {name!r} is neither a path to a .json nor a model of open_clip"
            + (f"; did you mean {' or '.join(close)}?" if close else "")
        )
    return _checked(name, cfg)


def _checked(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """A model JSON, or the two of an open_clip_config.json as one. Raises UserError."""
    model_cfg = content.get("model_cfg", content)
    if not isinstance(model_cfg, dict):
        raise UserError(f"model.name {name}: model_cfg must be a mapping, not {model_cfg!r}")
    cfg = dict(model_cfg)
    if preprocess := content.get("preprocess_cfg"):
        cfg["preprocess_cfg"] = preprocess
    if missing := REQUIRED - set(cfg):
        raise UserError(
            f"model.name {name} lacks {', '.join(sorted(missing))}: it is no open_clip model JSON"
        )
    if "multimodal_cfg" in cfg:
        raise UserError(
            f"model.name {name} is a CoCa, with a decoder that writes captions (multimodal_cfg); "
            "clipx trains image-text encoders: take the model without it"
        )
    if unknown := set(cfg) - KNOWN:
        raise UserError(
            f"model.name {name} has keys that clipx does not know: {', '.join(sorted(unknown))}; "
            f"it knows {', '.join(sorted(KNOWN))}"
        )
    if complaints := faults(cfg):
        raise UserError("\n  ".join([f"model.name {name} describes no model:", *complaints]))
    cfg["vision_cfg"] = {**cfg["vision_cfg"], "image_size": image_size(cfg)}
    return cfg


def image_size(cfg: dict[str, Any]) -> int:
    """Pixels along a side. Raises UserError."""
    size = cfg["vision_cfg"].get("image_size", 224)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) > 1:
        raise UserError(f"vision_cfg.image_size {size} is not square; give one number")
    return int(sides.pop())


def context_length(cfg: dict[str, Any]) -> int:
    """Most tokens of a caption, its start and end included."""
    return cfg["text_cfg"].get("context_length", 77)


NOT_OF_A_TOWER = {"output_tokens", "pad_id", "eos_id", "hf_tokenizer_name", "tokenizer_kwargs"}


def covers(fields: set[str], plain: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether one of our own towers, which has these fields, is what the settings describe."""
    return all(
        key in fields or key in NOT_OF_A_TOWER or (key in plain and value == plain[key])
        for key, value in settings.items()
    )


def fixed_text_length(cfg: dict[str, Any]) -> int | None:
    """Tokens to which this model's captions must be padded; None where they may be cut to the
    longest of the batch.

    A causal tower read at the end token does not see padding. One without a mask does, and SigLIP's
    is read at the last position. `argmax` takes the highest id for the end token, which only CLIP's
    own tokenizer promises. A tower of transformers hides the padding of its own tokenizer, and
    attends to that of another.
    """
    text_cfg = cfg["text_cfg"]
    tokenizer = text_cfg.get("hf_tokenizer_name")
    if tower := text_cfg.get("hf_model_name"):
        return None if tower == tokenizer else context_length(cfg)
    causal = not (text_cfg.get("no_causal_mask") or text_cfg.get("embed_cls"))
    read = text_cfg.get("pool_type", "argmax")
    free = causal and (read == "eos" or (read == "argmax" and not tokenizer))
    return None if free else context_length(cfg)


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
    """`cfg` with its Hugging Face text tower built from the files in `folder`, where it has any,
    and without the weights of a tower's own pretraining: those of the folder take their place."""
    text_cfg = dict(cfg["text_cfg"])
    for key, file in (
        ("hf_model_name", "config.json"),
        ("hf_tokenizer_name", "tokenizer_config.json"),
    ):
        if text_cfg.get(key) and (folder / file).is_file():
            text_cfg[key] = str(folder)
    return without_pretrained_towers({**cfg, "text_cfg": text_cfg})


def without_pretrained_towers(cfg: dict[str, Any]) -> dict[str, Any]:
    """`cfg` whose towers are built with random weights, for weights of the whole model to come."""
    out = {**cfg, "text_cfg": dict(cfg["text_cfg"]), "vision_cfg": dict(cfg["vision_cfg"])}
    if out["text_cfg"].get("hf_model_name"):
        out["text_cfg"]["hf_model_pretrained"] = False
    if out["vision_cfg"].get("timm_model_name"):
        out["vision_cfg"]["timm_model_pretrained"] = False
    return out
