"""From a file of weights to the parameters of a model: names, layouts and sizes of others are made
ours."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipx.models.vit import VisionTransformer
from clipx.types import UserError

Weights = dict[str, Tensor]
IMAGE, TEXT, TIMM = (
    "visual.positional_embedding",
    "text.positional_embedding",
    "visual.trunk.pos_embed",
)


def fill(model: nn.Module, file: Path) -> list[str]:
    """Load a file into a DualEncoder; returns what was changed on the way. Raises UserError."""
    if file.suffix == ".npz":
        return _fill_from_big_vision(model, file)
    weights = custom_text_names(converted(model, read_weights(file)))
    notices = [*_scalars(model, weights), *_resized(model, weights)]
    if faults := list(misfits(model, weights)):
        raise UserError(f"model.initial {file} does not fit the model:\n" + "\n".join(faults))
    model.load_state_dict(weights)
    return [f"model.initial {file}: {notice}" for notice in notices]


def read_weights(file: Path) -> Weights:
    """A state dict by name, read without running code of the file's. Raises UserError."""
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
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def converted(model: nn.Module, weights: Weights) -> Weights:
    """Those of OpenAI without what describes the architecture; those of Apple's MobileCLIP under
    open_clip's names."""
    from open_clip.convert import convert_state_dict
    from open_clip.timm_model import TimmModel

    told = ("input_resolution", "context_length", "vocab_size")
    weights = {name: tensor for name, tensor in weights.items() if name not in told}
    towers: Any = model  # what open_clip's function needs is `visual.trunk`
    return convert_state_dict(towers, weights) if isinstance(towers.visual, TimmModel) else weights


def custom_text_names(weights: Weights) -> Weights:
    """open_clip's CLIP keeps its text tower at the top; CustomTextCLIP and clipx under `text`."""
    own = ("visual.", "text.", "logit_scale", "logit_bias")
    named = {n if n.startswith(own) else f"text.{n}": tensor for n, tensor in weights.items()}
    # Buffers that the model makes anew, which older versions stored.
    made = ("text.attn_mask", "text.transformer.embeddings.position_ids")
    return {name: tensor for name, tensor in named.items() if name not in made}


def _scalars(model: nn.Module, weights: Weights) -> Iterator[str]:
    """logit_scale and logit_bias as scalars. The bias changes no embedding: one that the file or
    the model does not have is no fault."""
    wanted = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in weights and weights[name].numel() == 1:
            weights[name] = weights[name].reshape(())
    if "logit_bias" in weights and "logit_bias" not in wanted:
        yield f"its logit_bias {weights.pop('logit_bias').item():.4g} is left out"
    elif "logit_bias" in wanted and "logit_bias" not in weights:
        weights["logit_bias"] = wanted["logit_bias"]
        yield f"it has no logit_bias, which starts at {wanted['logit_bias'].item():.4g}"


def _resized(model: nn.Module, weights: Weights) -> Iterator[str]:
    """Position embeddings interpolated to the model's image size and context length, as open_clip
    does. Those of images are bicubic, the class token's stays."""
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    wanted = model.state_dict()
    for name in (IMAGE, TEXT, TIMM):
        if name not in weights or name not in wanted:
            continue
        old, new = weights[name].shape, wanted[name].shape
        if old == new or old[-1] != new[-1]:
            continue
        weights[name] = weights[name].float()
        towers: Any = model
        if name == TIMM:
            weights[name] = _resized_by_timm(towers.visual.trunk, weights[name])
        elif name == TEXT:
            resize_text_pos_embed(weights, towers)
        else:
            resize_pos_embed(weights, _with_grid(towers))
        yield f"{name} is interpolated from {old[-2]} to {new[-2]} positions"


def _with_grid(towers: Any) -> Any:
    """What open_clip asks of a model for its grid of patches."""
    visual = towers.visual
    if isinstance(visual, VisionTransformer):
        side = visual.image_size // visual.patch_size
        return SimpleNamespace(visual=SimpleNamespace(grid_size=(side, side)))
    return towers


def _resized_by_timm(trunk: Any, positions: Tensor) -> Tensor:
    """(1, prefix + patches, width) -> the trunk's number of patches, as its set_input_size does."""
    from timm.layers import resample_abs_pos_embed

    grid = trunk.patch_embed.grid_size
    prefix = trunk.pos_embed.shape[1] - grid[0] * grid[1]
    return resample_abs_pos_embed(positions, new_size=list(grid), num_prefix_tokens=prefix)


def misfits(model: nn.Module, weights: Weights) -> Iterator[str]:
    """One line for each parameter that is missing, unknown or of another shape."""
    wanted = model.state_dict()
    for name in [*wanted, *(n for n in weights if n not in wanted)]:
        if name not in weights:
            yield f"  {name}: not in the file"
        elif name not in wanted:
            yield f"  {name}: not in the model"
        elif wanted[name].shape != weights[name].shape:
            file, ours = tuple(weights[name].shape), tuple(wanted[name].shape)
            yield f"  {name}: {file} in the file, {ours} in the model"


def _fill_from_big_vision(model: nn.Module, file: Path) -> list[str]:
    """SigLIP as Google publishes it (arXiv:2303.15343): arrays under Flax's names."""
    from open_clip.convert import load_big_vision_weights

    towers: Any = model
    try:
        load_big_vision_weights(towers, str(file))
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"model.initial {file} does not fit the model: {type(error).__name__}: {error}\n"
            "An .npz must be a SigLIP of big_vision, and model.name the same one of open_clip's, "
            "such as ViT-B-16-SigLIP"
        ) from error
    return []
