"""CLIPModel and SiglipModel of the transformers library, from a folder. They are evaluated beside
clipx's own models, not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipx.models.dual_encoder import DualEncoder
from clipx.models.model_json import FILE_NAME, read_json
from clipx.types import UserError

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""Class by `model_type` of config.json."""


def is_transformers(folder: Path) -> bool:
    """Whether a folder has such a model. Checkpoints of clipx and folders of open_clip may also
    have a config.json, that of a text tower."""
    if (folder / FILE_NAME).exists() or not (folder / "config.json").is_file():
        return False
    return read_json(folder / "config.json").get("model_type") in _CLASSES


class Tower(nn.Module):
    """(B, 3, H, W) float, or (B, T) int64 -> (B, D)"""

    def __init__(self, model: Any, projection: Any, input_name: str) -> None:
        super().__init__()
        self.model = model
        self.projection = projection
        self.input_name = input_name

    def forward(self, x: Tensor) -> Tensor:
        # Text gets no attention mask: CLIP is causal and uses the end token, before all padding,
        # and SigLIP was trained to attend to its padding.
        return self.projection(self.model(**{self.input_name: x}).pooler_output)


def load_transformers(folder: Path) -> tuple[DualEncoder, dict[str, Any]]:
    """(model in eval mode, its model JSON as in `describe`). Raises UserError."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{folder} is a model of transformers: pip install 'clipx-train[huggingface]'"
        ) from error
    class_name = _CLASSES[read_json(folder / "config.json")["model_type"]]
    try:
        model: Any = getattr(transformers, class_name).from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be read as a {class_name}: {error}") from error
    cfg = describe(model.config, folder)
    # SigLIP's towers end in the shared space; CLIP's are projected into it.
    is_clip = class_name == "CLIPModel"
    image_projection = model.visual_projection if is_clip else nn.Identity()
    text_projection = model.text_projection if is_clip else nn.Identity()
    visual = Tower(model.vision_model, image_projection, "pixel_values")
    text = Tower(model.text_model, text_projection, "input_ids")
    encoder = DualEncoder(cfg, (visual, text))
    with torch.no_grad():
        encoder.logit_scale.copy_(model.logit_scale.reshape(()))
    return encoder.eval(), cfg


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
