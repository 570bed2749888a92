"""Models of the transformers library, CLIPModel and SiglipModel, from a folder: to be evaluated
beside clipx's own, not to be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipx.models.dual_encoder import DualEncoder
from clipx.types import UserError

_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""model_type in config.json -> class."""


def is_transformers(folder: Path) -> bool:
    """Whether a folder is such a model and not a checkpoint of clipx or a folder of open_clip's,
    which may hold the config.json of a text tower."""
    if (folder / "open_clip_config.json").exists() or not (folder / "config.json").is_file():
        return False
    return _read(folder / "config.json").get("model_type") in KINDS


class ImageTower(nn.Module):
    """(B, 3, H, W) -> (B, D)"""

    def __init__(self, model: Any, projection: nn.Module) -> None:
        super().__init__()
        self.model, self.projection = model, projection

    def forward(self, image: Tensor) -> Tensor:
        return self.projection(self.model(pixel_values=image).pooler_output)


class TextTower(nn.Module):
    """(B, T) int64 -> (B, D). Without an attention mask: CLIP's is causal and reads the end token,
    before all padding, and SigLIP is trained to see its padding."""

    def __init__(self, model: Any, projection: nn.Module) -> None:
        super().__init__()
        self.model, self.projection = model, projection

    def forward(self, text: Tensor) -> Tensor:
        return self.projection(self.model(input_ids=text).pooler_output)


def load_transformers(folder: Path) -> tuple[DualEncoder, dict[str, Any]]:
    """(model in eval mode, what open_clip's model JSON would say of it). Raises UserError."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{folder} is a model of transformers: pip install 'clipx[huggingface]'"
        ) from error
    config = _read(folder / "config.json")
    kind = KINDS[config["model_type"]]
    try:
        classes = {"CLIPModel": transformers.CLIPModel, "SiglipModel": transformers.SiglipModel}
        model: Any = classes[kind].from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be read as a {kind}: {error}") from error
    cfg = model_json(model.config, folder)
    image, text = nn.Identity(), nn.Identity()
    if kind == "CLIPModel":  # SigLIP's towers end in the shared space
        image, text = model.visual_projection, model.text_projection
    towers = ImageTower(model.vision_model, image), TextTower(model.text_model, text)
    encoder = DualEncoder(cfg, towers)
    with torch.no_grad():
        encoder.logit_scale.copy_(model.logit_scale.reshape(()))
    return encoder.eval(), cfg


def model_json(config: Any, folder: Path) -> dict[str, Any]:
    """What open_clip's schema says of preprocessing and tokenizer; the towers are not of it."""
    text, siglip = config.text_config, config.model_type == "siglip"
    processor = folder / "preprocessor_config.json"
    if not processor.is_file():
        raise UserError(
            f"{folder} has no preprocessor_config.json, which says how images are normalized"
        )
    settings = _read(processor)
    resample = settings.get("resample", 3)
    if resample not in _RESAMPLE:
        raise UserError(
            f"{processor} has resample {resample!r}; clipx knows 2 (bilinear) and 3 (bicubic)"
        )
    return {
        "embed_dim": text.hidden_size if siglip else config.projection_dim,
        "vision_cfg": {"image_size": config.vision_config.image_size},
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "hf_tokenizer_name": str(folder),
            "no_causal_mask": siglip,
            # As its processor: SigLIP drops punctuation and capitals before it splits a caption.
            "tokenizer_kwargs": {"clean": "canonicalize"} if siglip else {},
        },
        "preprocess_cfg": {
            "mean": settings["image_mean"],
            "std": settings["image_std"],
            "interpolation": _RESAMPLE[resample],
            "resize_mode": "squash" if siglip else "shortest",
        },
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
