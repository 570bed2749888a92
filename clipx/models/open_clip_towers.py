"""Towers that open_clip builds: ModifiedResNet, timm, Hugging Face, SigLIP and the rest of its
model JSONs."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from typing import Any

import timm
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, _build_text_tower, _build_vision_tower
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from clipx.models.model_json import context_length, image_size
from clipx.types import UserError

# What open_clip, timm and transformers raise for settings that describe no model.
_BUILD_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AssertionError,
    AttributeError,
    ArithmeticError,
)


def image_tower(cfg: dict[str, Any]) -> nn.Module:
    """(B, 3, H, W) -> (B, embed_dim). Raises UserError."""
    settings = _settings(cfg, "vision_cfg", CLIPVisionCfg)
    name = settings.get("timm_model_name")
    if name and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        remedy = f"did you mean {' or '.join(close)}?" if close else "upgrade timm"
        raise UserError(
            f"vision_cfg.timm_model_name {name!r} is no model of timm {timm.__version__}; {remedy}"
        )
    try:
        tower = _build_vision_tower(cfg["embed_dim"], settings, cfg.get("quick_gelu", False))  # type: ignore[arg-type]
    except _BUILD_ERRORS as error:
        raise UserError(
            f"vision_cfg cannot be built by open_clip: {type(error).__name__}: {error}"
        ) from error
    if isinstance(tower, TimmModel):
        _set_image_size(tower, image_size(cfg), str(name))
    _make_channels_last(tower)
    return tower


def _make_channels_last(tower: nn.Module) -> None:
    """Put convolutions into channels-last memory: 1.7x the speed of an EfficientNet on CPUs, and
    faster on GPUs too."""
    for module in tower.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        # In this format, torch 2.14's backward of a strided 1 x 1 convolution of fewer than 16
        # channels writes beyond its memory on CPUs. FastViT has one on pixels.
        is_strided = module.kernel_size == (1, 1) and module.stride != (1, 1)
        if not is_strided or module.in_channels >= 16:
            module.to(memory_format=torch.channels_last)


def text_tower(cfg: dict[str, Any]) -> nn.Module:
    """(B, T) -> (B, embed_dim). Raises UserError."""
    settings = _settings(cfg, "text_cfg", CLIPTextCfg)
    name = settings.get("hf_model_name")
    try:
        tower = _build_text_tower(cfg["embed_dim"], settings, cfg.get("quick_gelu", False))  # type: ignore[arg-type]
    except _BUILD_ERRORS as error:
        if name is None:
            raise UserError(
                f"text_cfg cannot be built by open_clip: {type(error).__name__}: {error}"
            ) from error
        raise UserError(
            f"text_cfg.hf_model_name {name!r} cannot be built: {type(error).__name__}: {error}\n"
            "It must be a folder with a transformers config.json or a model of the Hugging Face "
            "hub, of a kind that open_clip knows (BERT, RoBERTa, XLM-RoBERTa, mT5, M2M100), and "
            "needs transformers: pip install 'clipx-train[huggingface]'"
        ) from error
    if isinstance(tower, HFTextEncoder):
        _check_positions(tower, context_length(cfg))
    # Captions are padded to the longest of the batch, and open_clip's mask has the full length.
    if isinstance(tower, TextTransformer) and tower.attn_mask is not None:
        tower.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)
    return tower


def _settings(cfg: dict[str, Any], key: str, schema: type) -> dict[str, Any]:
    """A copy of one section for open_clip. Raises UserError for keys that open_clip does not
    know."""
    known = {field.name for field in dataclasses.fields(schema)}
    unknown = set(cfg[key]) - known
    if unknown:
        raise UserError(
            f"{key} has {', '.join(sorted(unknown))}, which this version of open_clip does not "
            f"know; it knows {', '.join(sorted(known))}"
        )
    # Without the tokens beside the embedding, which are for CoCa's decoder.
    return {**copy.deepcopy(cfg[key]), "output_tokens": False}


def _set_image_size(tower: TimmModel, size: int, name: str) -> None:
    """Change the patch grid and the position embeddings of a timm model to another image size than
    its own. Convolutional networks take any. Raises UserError."""
    # timm keeps the size in the module that cuts images into patches, under one of three names.
    own_size = None
    children = dict(tower.trunk.named_children())
    for key in ("patch_embed", "pixel_embed", "stem"):
        own_size = own_size or getattr(children.get(key), "img_size", None)
    if own_size is None or tuple(own_size) == (size, size):
        return
    if "set_input_size" not in dir(tower.trunk):
        raise UserError(
            f"vision_cfg.image_size {size}: timm's {name} takes images of {own_size[0]} pixels only"
        )
    try:
        tower.set_input_size(size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"vision_cfg.image_size {size} does not fit timm's {name} ({own_size[0]}): {error}"
        ) from error


def _check_positions(tower: HFTextEncoder, length: int) -> None:
    """Raise UserError if captions may be longer than the table of learned positions."""
    for name, module in tower.transformer.named_modules():
        if not (name.endswith("position_embeddings") and isinstance(module, nn.Embedding)):
            continue
        num_positions = module.num_embeddings
        if module.padding_idx is not None:  # RoBERTa counts from the padding id on
            num_positions -= module.padding_idx + 1
        if length > num_positions:
            raise UserError(
                f"text_cfg.context_length {length} is more than the text tower has positions "
                f"for; set it to {num_positions} at most"
            )


def _cut_mask(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Let open_clip's causal text tower take captions of fewer tokens than its context length."""
    num_tokens = args[0].shape[1]
    return args, {**kwargs, "attn_mask": kwargs["attn_mask"][..., :num_tokens, :num_tokens]}


def split(tower: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(trunk, head) with tower(x) = head(trunk(x)). Raises UserError for towers that do not divide
    so."""
    if isinstance(tower, TimmModel):
        return tower.trunk, tower.head
    if isinstance(tower, HFTextEncoder):
        return PooledText(tower), tower.proj
    raise UserError(
        "cache_features needs towers of timm and Hugging Face (vision_cfg.timm_model_name, "
        f"text_cfg.hf_model_name); this model's {type(tower).__name__} has no trunk apart from "
        "its head"
    )


class PooledText(nn.Module):
    """An HFTextEncoder without its projection: (B, T) int64 -> (B, width)."""

    def __init__(self, tower: HFTextEncoder) -> None:
        super().__init__()
        self.transformer = tower.transformer
        self.pooler = tower.pooler
        config: Any = tower.config
        self.pad_id: int = config.pad_token_id

    def forward(self, text: Tensor) -> Tensor:
        # The pooler too leaves out padding: a mean over it would depend on the batch.
        mask = (text != self.pad_id).long()
        return self.pooler(self.transformer(input_ids=text, attention_mask=mask), mask)
