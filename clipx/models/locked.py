"""Locked towers: trunks that training leaves as they are, and the heads that it changes (LiT,
arXiv:2111.07991)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clipx.models.dual_encoder import DualEncoder
from clipx.types import UserError

# Settings of the JSON that shape the heads alone: features do not depend on them.
HEAD_SETTINGS = ("timm_proj", "timm_proj_bias", "timm_drop", "hf_proj_type")


@dataclass(frozen=True)
class Split:
    """A DualEncoder cut in two: encode_image(x) is heads.encode_image(image_trunk(x)), and so for
    text. All parameters are the model's own.

    digest: SHA-1 of the trunks' architecture and weights
    """

    image_trunk: nn.Module
    text_trunk: nn.Module
    heads: DualEncoder
    digest: str


def split_locked(model: DualEncoder, cfg: dict[str, Any]) -> Split:
    """Raises UserError where a trunk is trained, or a tower has no seam to cut at."""
    from clipx.models.open_clip_towers import split

    visual, text = split(model.visual), split(model.text)
    if visual is None or text is None:
        kind = type(model.visual if visual is None else model.text).__name__
        raise UserError(
            f"cache_features needs towers of timm and Hugging Face (vision_cfg.timm_model_name, "
            f"text_cfg.hf_model_name); this model's {kind} has no trunk apart from its head"
        )
    trunks, heads = (visual[0], text[0]), (visual[1], text[1])
    trained = [n for trunk in trunks for n, p in trunk.named_parameters() if p.requires_grad]
    if trained:
        raise UserError(
            f"cache_features needs both trunks locked, but {len(trained)} of their parameters are "
            "trained; set model.locked: [visual.trunk, text.transformer]"
        )
    return Split(*trunks, _heads_model(model, cfg, heads), _digest(trunks, cfg))


def _heads_model(
    model: DualEncoder, cfg: dict[str, Any], heads: tuple[nn.Module, nn.Module]
) -> DualEncoder:
    """A model from features on, with the parameters of the whole one."""
    out = DualEncoder(cfg, heads)
    out.logit_scale, out.logit_bias = model.logit_scale, model.logit_bias
    return out


def _digest(trunks: tuple[nn.Module, nn.Module], cfg: dict[str, Any]) -> str:
    parts = {key: cfg[key] for key in ("vision_cfg", "text_cfg")}
    told = {k: {n: v for n, v in p.items() if n not in HEAD_SETTINGS} for k, p in parts.items()}
    digest = hashlib.sha1(repr(sorted(told.items())).encode())
    for trunk in trunks:
        for name, tensor in trunk.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
