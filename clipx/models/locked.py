"""Cut a model into trunks that are not trained and heads that are (LiT, arXiv:2111.07991)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clipx.models.dual_encoder import DualEncoder
from clipx.types import UserError

# Settings of the JSON that shape heads only. Features of trunks do not depend on them.
HEAD_SETTINGS = ("timm_proj", "timm_proj_bias", "timm_drop", "hf_proj_type")


@dataclass(frozen=True)
class Split:
    """encode_image(x) of the model is heads.encode_image(image_trunk(x)); the same for text. All
    parameters are those of the model.

    digest: SHA-1 of the trunks' architecture and weights
    """

    image_trunk: nn.Module
    text_trunk: nn.Module
    heads: DualEncoder
    digest: str


def split_locked(model: DualEncoder, cfg: dict[str, Any]) -> Split:
    """Raises UserError if a trunk is trained, or a tower has no trunk apart from its head."""
    from clipx.models.open_clip_towers import split  # open_clip takes seconds to import

    image_trunk, image_head = split(model.visual)
    text_trunk, text_head = split(model.text)
    num_trained = 0
    for parameter in [*image_trunk.parameters(), *text_trunk.parameters()]:
        num_trained += parameter.requires_grad
    if num_trained:
        raise UserError(
            f"cache_features needs both trunks locked, but {num_trained} of their parameters are "
            "trained; set model.locked: [visual.trunk, text.transformer]"
        )
    # The heads share the model's parameters, so training them trains the model.
    heads = DualEncoder(cfg, (image_head, text_head))
    heads.logit_scale = model.logit_scale
    heads.logit_bias = model.logit_bias

    # Features that are stored are found by this digest, so its format stays.
    settings = []
    for section in ("text_cfg", "vision_cfg"):
        kept = {key: value for key, value in cfg[section].items() if key not in HEAD_SETTINGS}
        settings.append((section, kept))
    digest = hashlib.sha1(repr(settings).encode())
    for trunk in (image_trunk, text_trunk):
        for name, tensor in trunk.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return Split(image_trunk, text_trunk, heads, digest.hexdigest())
