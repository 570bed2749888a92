"""Weights of transformers' CLIPModel and SiglipModel under open_clip's names and in its layout."""

from __future__ import annotations

import torch
from torch import Tensor

from clipx.types import UserError

_LAYERS = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "self_attn.out_proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_TIMM_LAYERS = {
    "layer_norm1.": "norm1.",
    "layer_norm2.": "norm2.",
    "self_attn.out_proj.": "attn.proj.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
_CLIP = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
}
_SIGLIP = {
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
    "text_model.head.": "text.text_projection.",
}
_TEXT = {
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.final_layer_norm.": "text.ln_final.",
}


def has_names_of_transformers(weights: dict[str, Tensor]) -> bool:
    return any(name.startswith("vision_model.") for name in weights)


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a CLIPModel or SiglipModel under open_clip's names and in its layout. An entry
    that neither model has keeps its name."""
    is_clip = "visual_projection.weight" in weights
    names = _TEXT | (_CLIP if is_clip else _SIGLIP)
    vision = "visual.transformer.resblocks." if is_clip else "visual.trunk.blocks."
    towers = {
        "vision_model.encoder.layers.": (vision, _LAYERS if is_clip else _TIMM_LAYERS),
        "text_model.encoder.layers.": ("text.transformer.resblocks.", _LAYERS),
    }
    out = {}
    for name, tensor in _joined(weights, is_clip).items():
        if name.endswith("embeddings.position_ids"):
            continue  # a buffer of older versions
        for start, (new_start, parts) in towers.items():
            if name.startswith(start):
                number, _, rest = name.removeprefix(start).partition(".")
                name = f"{new_start}{number}.{_replaced(rest, parts)}"
        out[_replaced(name, names)] = tensor
    if is_clip:
        # Linear layers without bias, which open_clip stores as matrices from the left.
        out["visual.proj"] = out.pop("visual_projection.weight").T.contiguous()
        if "text_projection.weight" in out:
            out["text.text_projection"] = out.pop("text_projection.weight").T.contiguous()
    elif "visual.trunk.pos_embed" in out:
        out["visual.trunk.pos_embed"] = out["visual.trunk.pos_embed"][None]
    return out


def _replaced(name: str, starts: dict[str, str]) -> str:
    """The name with its beginning replaced, if it is one of these."""
    for start, new_start in starts.items():
        if name.startswith(start):
            return new_start + name.removeprefix(start)
    return name


def _joined(weights: dict[str, Tensor], is_clip: bool) -> dict[str, Tensor]:
    """The projections to queries, keys and values as one parameter, where open_clip has one."""
    out = dict(weights)
    for name in weights:
        if not name.endswith((".self_attn.q_proj.weight", ".self_attn.q_proj.bias")):
            continue
        layer, _, kind = name.partition("q_proj.")
        three = []
        for part in ("q", "k", "v"):
            if f"{layer}{part}_proj.{kind}" not in out:
                raise UserError(f"{name} has no {part}_proj beside it: the file is incomplete")
            three.append(out.pop(f"{layer}{part}_proj.{kind}"))
        is_timm = not is_clip and name.startswith("vision_model.")
        joined = f"attn.qkv.{kind}" if is_timm else f"attn.in_proj_{kind}"
        out[layer.removesuffix("self_attn.") + joined] = torch.cat(three)
    # SigLIP's pooling has all three in one, and timm the query apart from the others.
    for kind in ("weight", "bias"):
        head = out.pop(f"vision_model.head.attention.in_proj_{kind}", None)
        if head is not None:
            width = len(head) // 3
            out[f"visual.trunk.attn_pool.q.{kind}"] = head[:width].contiguous()
            out[f"visual.trunk.attn_pool.kv.{kind}"] = head[width:].contiguous()
    return out
