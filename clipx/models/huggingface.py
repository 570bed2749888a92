"""CLIPModel and SiglipModel of the transformers library, run by transformers itself, so that they
are evaluated as they were published. Training takes their weights into clipx's own towers, see
transformers_config.py and transformers_weights.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipx.models.dual_encoder import DualEncoder
from clipx.models.model_json import read_json
from clipx.models.transformers_config import CLASSES, describe, import_transformers
from clipx.types import UserError


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
    transformers = import_transformers(folder)
    class_name = CLASSES[read_json(folder / "config.json")["model_type"]]
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
