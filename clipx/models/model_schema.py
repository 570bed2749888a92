"""Check the values of an open_clip model JSON before a model is built from them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from clipx.config_errors import complaints

# The upper bounds are far above any published model. They catch a number with too many digits
# before memory runs out.
Width = Annotated[int, Field(ge=1, le=2**16)]
Count = Annotated[int, Field(ge=1, le=2**10)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]
Ratio = Annotated[float, Field(gt=0, le=64)]
Gain = Annotated[float, Field(gt=0, le=1000)]
Logit = Annotated[float, Field(ge=-1000, le=1000)]


def _as_stages(layers: Any) -> list[Any]:
    """A transformer has one number of layers, a ResNet a list."""
    if not isinstance(layers, list):
        return [layers]
    if len(layers) != 4:
        raise ValueError(f"a ResNet has 4 stages, not {len(layers)}")
    return layers


def _as_sides(size: Any) -> list[Any]:
    return size if isinstance(size, list) else [size]


Stages = Annotated[list[Count], BeforeValidator(_as_stages)]
Sides = Annotated[list[Pixels], BeforeValidator(_as_sides), Field(min_length=1, max_length=2)]


class _Section(BaseModel):
    # Strict, or "3" and true would be numbers. open_clip checks names of keys when it builds.
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Vision(_Section):
    image_size: Sides = [224]
    layers: Stages = [12]
    width: Width = 768
    head_width: Width = 64
    patch_size: Annotated[int, Field(ge=1, le=2**12)] | None = 16
    mlp_ratio: Ratio = 4.0
    ls_init_value: Gain | None = None
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    timm_model_name: str | None = None


class _TokenizerSettings(_Section):
    clean: str = ""


class _Text(_Section):
    context_length: Annotated[int, Field(ge=2, le=2**20)] = 77  # a start and an end token
    vocab_size: Annotated[int, Field(ge=1, le=2**24)] = 49408
    width: Width = 512
    heads: Count = 8
    layers: Count = 12
    mlp_ratio: Ratio = 4.0
    ls_init_value: Gain | None = None
    hf_model_name: str | None = None
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: _TokenizerSettings | None = None


class _Model(_Section):
    embed_dim: Width
    vision_cfg: _Vision
    text_cfg: _Text
    quick_gelu: bool = False
    custom_text: bool = False
    nonscalar_logit_scale: bool = False
    init_logit_scale: Logit | None = None
    init_logit_bias: Logit | None = None


def find_faults(cfg: dict[str, Any]) -> list[str]:
    """One line for each value that describes no model, by dotted path."""
    try:
        model = _Model.model_validate(cfg)
    except ValidationError as error:
        return complaints(error, _Model)
    faults = _vision_faults(model.vision_cfg)
    text = model.text_cfg
    if not text.hf_model_name and text.width % text.heads:
        faults.append(f"text_cfg.width: {text.width} does not divide into {text.heads} heads")
    return faults


def _vision_faults(vision: _Vision) -> list[str]:
    if len(vision.layers) > 1:  # a ResNet has neither heads nor patches
        return []
    if vision.patch_size is None:  # null is for a ResNet only
        return ["vision_cfg.patch_size: must be an integer, not null"]
    if vision.timm_model_name:
        return []
    faults = []
    # Each head works on its own slice of the width.
    heads = vision.width // vision.head_width
    if heads == 0 or vision.width % heads:
        faults.append(
            f"vision_cfg.width: {vision.width} does not divide into {heads} heads of head_width "
            f"{vision.head_width}; make it a multiple of head_width"
        )
    size = min(vision.image_size)
    if vision.patch_size > size:
        faults.append(
            f"vision_cfg.patch_size: {vision.patch_size} is larger than image_size {size}"
        )
    return faults
