"""Models that have a name instead of a folder: open_clip's, and those of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.hub import OPEN_CLIP
from clipx.models.initial import checkpoint, pretrained
from clipx.types import UserError


def load_published(name: str) -> tuple[DualEncoder, dict[str, Any]]:
    """The model of a name with one of the prefixes, and its model JSON. Raises UserError."""
    config = ModelConfig(name=name, initial=checkpoint.Config(name))
    if name.startswith(OPEN_CLIP):
        architecture, _, tag = name.removeprefix(OPEN_CLIP).partition("/")
        if not tag:
            raise UserError(
                f"{name} names no weights; write open_clip:ARCHITECTURE/TAG, for example "
                "open_clip:ViT-B-32/laion2b_s34b_b79k"
            )
        is_file = Path(tag).is_file()
        initial = checkpoint.Config(tag) if is_file else pretrained.Config(tag)
        config = ModelConfig(name=architecture, initial=initial)
    model_json = config.read()
    weights = config.build_initial()
    assert weights is not None, "the config names weights"
    weights.prepare()
    model = DualEncoder(model_json)
    weights.load(model)
    return model.eval(), model_json
