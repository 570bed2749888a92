"""Towers that open_clip builds: ModifiedResNet, timm, Hugging Face, SigLIP and the rest of its
model JSONs."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
from torch import nn

_KNOWN = (
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "init_logit_scale",
    "init_logit_bias",
)
_IGNORED = ("custom_text",)  # every clipx model has its text tower under `text`


def open_clip_towers(cfg: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """(visual, text) without pretrained weights."""
    settings = {key: copy.deepcopy(cfg[key]) for key in cfg if key not in _IGNORED}
    unknown = set(settings) - set(_KNOWN)
    assert not unknown, f"model JSON keys {sorted(unknown)} are not those of an image-text model"
    model = open_clip.CustomTextCLIP(**settings)
    return model.visual, model.text
