"""Checks of the values in an open_clip model JSON, before a model is built from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Section and key -> smallest and largest integer. The upper bounds are far above any published
# model; they catch a number with too many digits before memory runs out.
_SIZES = {
    "embed_dim": (1, 2**16),
    "vision_cfg.width": (1, 2**16),
    "vision_cfg.head_width": (1, 2**16),
    "text_cfg.width": (1, 2**16),
    "text_cfg.heads": (1, 2**10),
    "text_cfg.layers": (1, 2**10),
    "text_cfg.context_length": (2, 2**20),  # a start and an end token
    "text_cfg.vocab_size": (1, 2**24),
}
_MAX_LAYERS, _MAX_IMAGE_SIZE = 2**10, 2**14
# Key -> smallest (excluded) and largest number.
_NUMBERS = {"mlp_ratio": (0.0, 64.0), "ls_init_value": (0.0, 1e3)}
_FLAGS = ("quick_gelu", "custom_text", "nonscalar_logit_scale")
_NAMES = ("timm_model_name", "hf_model_name", "hf_tokenizer_name")


def faults(cfg: dict[str, Any]) -> list[str]:
    """Complaints by dotted path; empty where the values can describe a model."""
    sections = ["vision_cfg", "text_cfg"]
    wrong = [
        f"{name}: must be a mapping, not {cfg[name]!r}"
        for name in sections
        if not isinstance(cfg[name], dict)
    ]
    if wrong:
        return wrong
    return [*_sizes(cfg), *_vision_sizes(cfg["vision_cfg"]), *_numbers(cfg), *_heads(cfg)]


def _sizes(cfg: dict[str, Any]) -> Iterator[str]:
    for path, (low, high) in _SIZES.items():
        section, _, key = path.rpartition(".")
        values = cfg[section] if section else cfg
        if key in values:
            yield from _integer(path, values[key], low, high)


def _vision_sizes(vision_cfg: dict[str, Any]) -> Iterator[str]:
    """Sizes that may be lists: layers of a ResNet's stages, height and width of images."""
    layers = vision_cfg.get("layers", 12)
    if isinstance(layers, list):
        if len(layers) != 4:
            yield f"vision_cfg.layers: a ResNet has 4 stages, not {len(layers)}"
    else:
        layers = [layers]
    for count in layers:
        yield from _integer("vision_cfg.layers", count, 1, _MAX_LAYERS)
    patch_size = vision_cfg.get("patch_size", 16)
    if patch_size is not None or not isinstance(
        vision_cfg.get("layers"), list
    ):  # a ResNet has none
        yield from _integer("vision_cfg.patch_size", patch_size, 1, 2**12)
    size = vision_cfg.get("image_size", 224)
    sides = size if isinstance(size, list | tuple) else [size]
    if len(sides) not in (1, 2):
        yield f"vision_cfg.image_size: must be one number or two, not {size!r}"
    for side in sides:
        yield from _integer("vision_cfg.image_size", side, 1, _MAX_IMAGE_SIZE)


def _numbers(cfg: dict[str, Any]) -> Iterator[str]:
    for section in ("vision_cfg", "text_cfg"):
        for key, (low, high) in _NUMBERS.items():
            value = cfg[section].get(key, high)
            if value is None and key == "ls_init_value":
                continue  # no layer scale
            if not (_is_number(value) and low < value <= high):
                allowed = f"a number in ({low:g}, {high:g}]"
                yield f"{section}.{key}: must be {allowed}, not {_short(value)}"
        for key in _NAMES:
            value = cfg[section].get(key)
            if value is not None and not isinstance(value, str):
                yield f"{section}.{key}: must be a name, not {_short(value)}"
    kwargs = cfg["text_cfg"].get("tokenizer_kwargs") or {}
    if not isinstance(kwargs, dict) or not isinstance(kwargs.get("clean", ""), str):
        yield f"text_cfg.tokenizer_kwargs: must be a mapping with names, not {kwargs!r}"
    dropout = cfg["vision_cfg"].get("patch_dropout", 0.0)
    if not (_is_number(dropout) and 0 <= dropout < 1):
        yield f"vision_cfg.patch_dropout: must be a number in [0, 1), not {_short(dropout)}"
    for key in ("init_logit_scale", "init_logit_bias"):
        value = cfg.get(key)
        if value is not None and not (_is_number(value) and abs(value) <= 1000):
            yield f"{key}: must be a number between -1000 and 1000, not {_short(value)}"
    for key in _FLAGS:
        if key in cfg and not isinstance(cfg[key], bool):
            yield f"{key}: must be true or false, not {_short(cfg[key])}"


def _heads(cfg: dict[str, Any]) -> Iterator[str]:
    """Attention splits the width evenly. Only for towers that the JSON itself describes."""
    vision_cfg, text_cfg = cfg["vision_cfg"], cfg["text_cfg"]
    width, head_width = vision_cfg.get("width", 768), vision_cfg.get("head_width", 64)
    plain = not vision_cfg.get("timm_model_name") and isinstance(vision_cfg.get("layers", 12), int)
    if plain and _are_sizes(width, head_width):
        heads = width // head_width
        if heads == 0 or width % heads:
            yield (
                f"vision_cfg.width: {width} does not divide into {heads} heads of head_width "
                f"{head_width}; make it a multiple of head_width"
            )
    image, patch = vision_cfg.get("image_size", 224), vision_cfg.get("patch_size", 16)
    if plain and _are_sizes(image, patch) and patch > image:
        yield f"vision_cfg.patch_size: {patch} is larger than image_size {image}"
    width, heads = text_cfg.get("width", 512), text_cfg.get("heads", 8)
    if not text_cfg.get("hf_model_name") and _are_sizes(width, heads) and width % heads:
        yield f"text_cfg.width: {width} does not divide into {heads} heads"


def _integer(path: str, value: Any, low: int, high: int) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        yield f"{path}: must be an integer from {low} to {high:,}, not {_short(value)}"


def _are_sizes(*values: Any) -> bool:
    """True for positive integers; others have a complaint of their own."""
    return all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)


def _is_number(value: Any) -> bool:
    """A finite number; comparing works for integers that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return f"one of {value.bit_length()} bits"
    return repr(value)[:60]
