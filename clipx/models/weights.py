"""Load a file of weights into a model: names, layouts and sizes of other programs become those of
clipx."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipx.models.transformers_weights import has_names_of_transformers, renamed
from clipx.models.vit import VisionTransformer
from clipx.types import UserError

Weights = dict[str, Tensor]

_IMAGE_POSITIONS = "visual.positional_embedding"
_TEXT_POSITIONS = "text.positional_embedding"
_TIMM_POSITIONS = "visual.trunk.pos_embed"
COMPUTED = ("text.attn_mask", "text.transformer.embeddings.position_ids")
"""Buffers in files of older versions that models compute."""


def fill(model: nn.Module, file: Path) -> list[str]:
    """Load a file into a DualEncoder. Returns a message for each conversion that changed a value.
    Raises UserError."""
    if file.suffix == ".npz":
        _fill_from_big_vision(model, file)
        return []
    # From any program's file to the model's names, scalars and sizes; then it must fit exactly.
    weights = read_weights(file)
    weights = _with_names_of_clipx(model, weights)
    messages = _fit_scalars(model, weights) + _resize_positions(model, weights)
    faults = mismatches(model, weights)
    if faults:
        raise UserError(f"model.initial {file} does not fit the model:\n" + "\n".join(faults))
    model.load_state_dict(weights)
    return [f"model.initial {file}: {message}" for message in messages]


def read_weights(file: Path) -> Weights:
    """A state dict, read without running code from the file. Raises UserError."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        if "TorchScript" in str(error):
            raise UserError(
                f"model.initial {file} is a TorchScript archive, which is a program; turn it into "
                "weights where you trust it: torch.save(torch.jit.load(file).state_dict(), other)"
            ) from error
        raise UserError(
            f"model.initial {file} cannot be read as weights: {type(error).__name__}: {error}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # open_clip's own training checkpoints
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"model.initial {file} holds no state dict (names -> tensors)")
    # open_clip's trainer stores the names of DDP.
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _with_names_of_clipx(model: nn.Module, weights: Weights) -> Weights:
    """Rename parameters, and drop entries that are no parameters."""
    from open_clip.convert import convert_state_dict
    from open_clip.timm_model import TimmModel

    if has_names_of_transformers(weights):
        weights = renamed(weights)
    # OpenAI's files hold three numbers of the architecture.
    for name in ("input_resolution", "context_length", "vocab_size"):
        weights.pop(name, None)
    towers: Any = model
    if isinstance(towers.visual, TimmModel):
        weights = convert_state_dict(towers, weights)  # Apple's names for MobileCLIP
    parameters = {}
    for name, tensor in weights.items():
        name = name_in_clipx(name)
        # Buffers that the model computes, which older versions stored.
        if name not in COMPUTED:
            parameters[name] = tensor
    return parameters


def name_in_clipx(name: str) -> str:
    """open_clip's CLIP has its text tower at the top; CustomTextCLIP and clipx under `text`."""
    is_placed = name.startswith(("visual.", "text.", "logit_scale", "logit_bias"))
    return name if is_placed else f"text.{name}"


def _fit_scalars(model: nn.Module, weights: Weights) -> list[str]:
    """Make logit_scale and logit_bias scalars, in place. Returns messages.

    The bias changes no embedding, so it may be missing in the file or in the model.
    """
    for name in ("logit_scale", "logit_bias"):
        if name in weights and weights[name].numel() == 1:
            weights[name] = weights[name].reshape(())
    bias = model.state_dict().get("logit_bias")
    if bias is None and "logit_bias" in weights:
        return [f"its logit_bias {weights.pop('logit_bias').item():.4g} is left out"]
    if bias is not None and "logit_bias" not in weights:
        weights["logit_bias"] = bias
        return [f"it has no logit_bias, which starts at {bias.item():.4g}"]
    return []


def _resize_positions(model: nn.Module, weights: Weights) -> list[str]:
    """Interpolate position embeddings to the model's image size and context length, in place, as
    open_clip does: those of images bicubically, without the class token's. Returns messages."""
    from open_clip.model import resize_pos_embed, resize_text_pos_embed
    from timm.layers import resample_abs_pos_embed

    towers: Any = model
    expected = model.state_dict()
    messages = []
    for name in (_IMAGE_POSITIONS, _TEXT_POSITIONS, _TIMM_POSITIONS):
        if name not in weights or name not in expected:
            continue
        old = weights[name].shape
        new = expected[name].shape
        if old == new or old[-1] != new[-1]:
            continue  # another width cannot be interpolated; `mismatches` reports it
        weights[name] = weights[name].float()
        if name == _TIMM_POSITIONS:
            # (1, prefix + patches, width), as the trunk's own set_input_size does.
            grid = towers.visual.trunk.patch_embed.grid_size
            num_prefix = new[-2] - grid[0] * grid[1]
            weights[name] = resample_abs_pos_embed(
                weights[name], new_size=list(grid), num_prefix_tokens=num_prefix
            )
        elif name == _TEXT_POSITIONS:
            resize_text_pos_embed(weights, towers)
        elif isinstance(towers.visual, VisionTransformer):
            # open_clip's function needs a `grid_size`, which clipx's tower does not have.
            side = towers.visual.image_size // towers.visual.patch_size
            visual = SimpleNamespace(grid_size=(side, side))
            resize_pos_embed(weights, SimpleNamespace(visual=visual))
        else:
            resize_pos_embed(weights, towers)
        messages.append(f"{name} is interpolated from {old[-2]} to {new[-2]} positions")
    return messages


def mismatches(model: nn.Module, weights: Weights) -> list[str]:
    """One line for each parameter that is missing, unknown or of another shape."""
    expected = model.state_dict()
    lines = []
    for name, tensor in expected.items():
        if name not in weights:
            lines.append(f"  {name}: not in the file")
        elif weights[name].shape != tensor.shape:
            in_file = tuple(weights[name].shape)
            lines.append(f"  {name}: {in_file} in the file, {tuple(tensor.shape)} in the model")
    for name in weights:
        if name not in expected:
            lines.append(f"  {name}: not in the model")
    return lines


def _fill_from_big_vision(model: nn.Module, file: Path) -> None:
    """Load SigLIP as Google publishes it (arXiv:2303.15343): arrays under Flax's names."""
    from open_clip.convert import load_big_vision_weights

    towers: Any = model
    try:
        load_big_vision_weights(towers, str(file))
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"model.initial {file} does not fit the model: {type(error).__name__}: {error}\n"
            "An .npz must be a SigLIP of big_vision, and model.name the same model of open_clip, "
            "such as ViT-B-16-SigLIP"
        ) from error
