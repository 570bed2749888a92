"""The config.json of transformers' CLIPModel and SiglipModel as a model JSON of open_clip's
schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipx.models.model_json import FILE_NAME, read_json
from clipx.types import UserError

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""Class by `model_type` of config.json."""

CLIP_VOCABULARY = 49408
"""Number of tokens of OpenAI's byte-pair encoding, which all models of this size use."""

_SIGLIP_TRUNKS = {
    (768, 12, 3072): "vit_base",
    (1024, 24, 4096): "vit_large",
    (1152, 27, 4304): "vit_so400m",
    (1536, 40, 6144): "vit_giantopt",
}
"""timm's names by (width, layers, width of the MLP)."""


def is_transformers(folder: Path) -> bool:
    """Whether a folder has such a model. Checkpoints of clipx and folders of open_clip may also
    have a config.json, that of a text tower."""
    if (folder / FILE_NAME).exists() or not (folder / "config.json").is_file():
        return False
    return read_json(folder / "config.json").get("model_type") in CLASSES


def read_config(folder: Path) -> Any:
    """The CLIPConfig or SiglipConfig of a folder, with the defaults of what it leaves out. Raises
    UserError."""
    transformers = import_transformers(folder)
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json cannot be read: {error}") from error


def import_transformers(folder: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{folder} is a model of transformers: pip install 'clipx-train[huggingface]'"
        ) from error
    return transformers


def describe(config: Any, folder: Path) -> dict[str, Any]:
    """Preprocessing and tokenizer in the schema of open_clip's model JSONs; not the towers. Raises
    UserError."""
    processor = folder / "preprocessor_config.json"
    if not processor.is_file():
        raise UserError(
            f"{folder} has no preprocessor_config.json, which states how images are normalized"
        )
    settings = read_json(processor)
    resample = settings.get("resample", 3)
    if resample not in _INTERPOLATIONS:
        raise UserError(
            f"{processor} has resample {resample!r}; clipx knows 2 (bilinear) and 3 (bicubic)"
        )
    text = config.text_config
    is_siglip = config.model_type == "siglip"
    return {
        "embed_dim": text.hidden_size if is_siglip else config.projection_dim,
        "vision_cfg": {"image_size": config.vision_config.image_size},
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "hf_tokenizer_name": str(folder),
            "no_causal_mask": is_siglip,
            # SigLIP's processor removes punctuation and capitals before it splits a caption.
            "tokenizer_kwargs": {"clean": "canonicalize"} if is_siglip else {},
        },
        "preprocess_cfg": {
            "mean": settings["image_mean"],
            "std": settings["image_std"],
            "interpolation": _INTERPOLATIONS[resample],
            "resize_mode": "squash" if is_siglip else "shortest",
        },
    }


def read_transformers_json(folder: Path) -> dict[str, Any]:
    """The model JSON, with `preprocess_cfg`, of a folder in which transformers saved a CLIPModel or
    a SiglipModel. Raises UserError for one that no architecture of open_clip describes."""
    config = read_config(folder)
    found = describe(config, folder)
    vision = config.vision_config
    text = config.text_config
    text_cfg = {
        **found["text_cfg"],
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": text.intermediate_size / text.hidden_size,
    }
    cfg = {"embed_dim": found["embed_dim"], "preprocess_cfg": found["preprocess_cfg"]}
    if config.model_type == "siglip":
        text_cfg |= {"proj_bias": True, "pool_type": "last"}
        text_cfg |= {"norm_kwargs": {"eps": text.layer_norm_eps}}
        text_cfg |= {"act_kwargs": {"approximate": "tanh"}}
        return {
            **cfg,
            "init_logit_bias": -10.0,
            "vision_cfg": _siglip_vision(vision, folder),
            "text_cfg": text_cfg,
        }
    _check_clip(config, folder)
    if text.vocab_size == CLIP_VOCABULARY:
        # clipx has this tokenizer itself, and so needs no files of the folder.
        del text_cfg["hf_tokenizer_name"]
    else:
        text_cfg |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    vision_cfg = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "width": vision.hidden_size,
        "layers": vision.num_hidden_layers,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
    }
    quick_gelu = text.hidden_act == "quick_gelu"
    return {**cfg, "quick_gelu": quick_gelu, "vision_cfg": vision_cfg, "text_cfg": text_cfg}


def _check_clip(config: Any, folder: Path) -> None:
    """Raise UserError for settings that the towers of CLIP's paper do not have."""
    vision = config.vision_config
    text = config.text_config
    activations = {vision.hidden_act, text.hidden_act}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        raise UserError(
            f"{folder} has hidden_act {vision.hidden_act!r} for images and {text.hidden_act!r} for "
            "texts; clipx trains models with quick_gelu or gelu in both towers"
        )
    if {vision.layer_norm_eps, text.layer_norm_eps} != {1e-5}:
        raise UserError(
            f"{folder} has layer_norm_eps {vision.layer_norm_eps} and {text.layer_norm_eps}; clipx "
            "trains models with 1e-5"
        )


def _siglip_vision(vision: Any, folder: Path) -> dict[str, Any]:
    """timm's tower of these sizes. Raises UserError."""
    import timm

    size = (vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size)
    family = f"{_SIGLIP_TRUNKS.get(size)}_patch{vision.patch_size}_siglip_"
    # The same tower takes images of any size, so that one of another size will do.
    names = timm.list_models(f"{family}[0-9]*")
    if not names:
        raise UserError(
            f"{folder} has an image tower of {size[1]} layers of width {size[0]} with patches of "
            f"{vision.patch_size} pixels, and timm has no SigLIP of these sizes, so clipx can "
            "evaluate it but not train it"
        )
    exact = f"{family}{vision.image_size}"
    return {
        "image_size": vision.image_size,
        "timm_model_name": exact if exact in names else names[0],
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
