"""Towers that open_clip builds: ModifiedResNet, timm, Hugging Face, SigLIP and the rest of its
model JSONs."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from clipx.types import UserError

_KNOWN = (
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "init_logit_scale",
    "init_logit_bias",
)
# Every clipx model has its text tower under `text`; pixels are clipx.data.transforms' business.
_IGNORED = ("custom_text", "preprocess_cfg")


def open_clip_towers(cfg: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """(visual, text) without pretrained weights. Raises UserError."""
    settings = {key: copy.deepcopy(cfg[key]) for key in cfg if key not in _IGNORED}
    unknown = set(settings) - set(_KNOWN)
    assert not unknown, f"model JSON keys {sorted(unknown)} are not those of an image-text model"
    name = cfg["text_cfg"].get("hf_model_name")
    try:
        model = open_clip.CustomTextCLIP(**settings)
    except (OSError, RuntimeError) as error:
        if name is None:
            raise
        raise UserError(
            f"text_cfg.hf_model_name {name!r} cannot be built: {error}\n"
            "It must be a folder with a transformers config.json or a model of the Hugging Face "
            "hub, and needs transformers: pip install 'clipx[huggingface]'"
        ) from error
    # Convolutions on channels-last memory: 1.7x the speed of a CPU's EfficientNet, also on GPUs.
    return model.visual.to(memory_format=torch.channels_last), model.text


def split(tower: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """(trunk, head) of a tower: tower(x) is head(trunk(x)). None for towers without such a seam."""
    if isinstance(tower, TimmModel):
        return tower.trunk, tower.head
    if isinstance(tower, HFTextEncoder):
        return PooledText(tower), tower.proj
    return None


class PooledText(nn.Module):
    """What HFTextEncoder computes before its projection: (B, T) int64 -> (B, width)."""

    def __init__(self, tower: HFTextEncoder) -> None:
        super().__init__()
        self.transformer, self.pooler = tower.transformer, tower.pooler
        config: Any = tower.config
        self.pad_id: int = config.pad_token_id

    def forward(self, text: Tensor) -> Tensor:
        mask = (text != self.pad_id).long()
        return self.pooler(self.transformer(input_ids=text, attention_mask=mask), mask)
