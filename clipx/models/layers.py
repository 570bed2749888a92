"""Structure of towers of all kinds: depth of each parameter, modules that repeat, and activation
checkpointing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from open_clip import transformer as open_clip_transformer
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from timm.models import group_parameters
from torch import nn
from torch.utils.checkpoint import checkpoint

from clipx.models.text_transformer import TextTransformer
from clipx.models.vit import VisionTransformer
from clipx.types import UserError

_TRANSFORMERS = (
    VisionTransformer,
    TextTransformer,
    open_clip_transformer.VisionTransformer,
    open_clip_transformer.TextTransformer,
)
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_RESNET_BLOCK = re.compile(r"layer\d\.\d+\.")
_UNSUPPORTED = (
    "activation checkpointing: {} does not support it; switch it off, and split the batch into "
    "micro-batches to save memory"
)


def tower_depths(tower: nn.Module) -> dict[str, int]:
    """Parameter name -> depth from the input: 0 before the first block, the largest for a
    projection into the common space. A head alone has depth 0.

    Where open_clip can unlock a tower, these are its groups.
    """
    names = [name for name, _ in tower.named_parameters()]
    if isinstance(tower, _TRANSFORMERS):
        return _transformer_depths(names)
    if isinstance(tower, ModifiedResNet):
        return _resnet_depths(names)
    if isinstance(tower, TimmModel):
        return _timm_depths(tower.trunk, names)
    if isinstance(tower, HFTextEncoder):
        return _huggingface_depths(tower, names)
    return dict.fromkeys(names, 0)


def _transformer_depths(names: Sequence[str]) -> dict[str, int]:
    depths = {}
    for name in names:
        match = _BLOCK.match(name)
        depths[name] = 1 + int(match[1]) if match else 0
    last_block = max(depths.values())
    # The norm after the blocks trains as fast as the last of them, the projection above it.
    for name in names:
        if name.startswith(("ln_post", "ln_final")):
            depths[name] = last_block
        elif name.startswith(("proj", "text_projection", "attn_pool")):
            depths[name] = last_block + 1
    return depths


def _resnet_depths(names: Sequence[str]) -> dict[str, int]:
    depths = {}
    block_depths: dict[str, int] = {}
    for name in names:  # from the input to the output
        match = _RESNET_BLOCK.match(name)
        if match:
            depths[name] = block_depths.setdefault(match[0], 1 + len(block_depths))
        else:
            depths[name] = 1 + len(block_depths) if name.startswith("attnpool") else 0
    return depths


def _timm_depths(trunk: Any, names: Sequence[str]) -> dict[str, int]:
    """timm's groups for layer-wise learning rates, with the head after them."""
    groups: Any = group_parameters(trunk, trunk.group_matcher(coarse=False))
    depths = dict.fromkeys(names, 1 + max(groups))
    for depth, group in groups.items():
        for name in group:
            depths[f"trunk.{name}"] = depth
    return depths


def _huggingface_depths(tower: HFTextEncoder, names: Sequence[str]) -> dict[str, int]:
    """Blocks are the longest list of modules. The last norm and a pooler belong to the last."""
    path = ""
    num_blocks = 0
    for name, module in tower.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > num_blocks:
            path = f"{name}."
            num_blocks = len(module)
    depths = {}
    depth = 0  # embeddings come before the blocks, the last norm and a pooler after them
    for name in names:  # from the input to the output
        if name.startswith(path):
            depth = 1 + int(name.removeprefix(path).split(".")[0])
        depths[name] = num_blocks + 1 if name.startswith("proj") else depth
    return depths


def blocks(tower: nn.Module) -> list[nn.Module]:
    """The modules that are stacked in a tower, from the input: for each depth, the largest module
    in a list with parameters of this depth only."""
    depths = tower_depths(tower)
    trunk: nn.Module = tower
    path = ""
    if isinstance(tower, TimmModel):
        trunk = tower.trunk
        path = "trunk."
    elif isinstance(tower, HFTextEncoder):
        trunk = tower.transformer
        path = "transformer."
    # A depth may have several such modules; the largest is its block.
    largest: dict[int, nn.Module] = {}
    for depth, module in _listed_modules(trunk, path, depths):
        if depth not in largest or _size(module) > _size(largest[depth]):
            largest[depth] = module
    return [largest[depth] for depth in sorted(largest)]


def _listed_modules(
    module: nn.Module, path: str, depths: dict[str, int]
) -> Iterator[tuple[int, nn.Module]]:
    """(depth, module) of the outermost items of lists whose parameters have one depth above 0."""
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    for name, child in module.named_children():
        child_path = f"{path}{name}."
        child_depths = {depth for n, depth in depths.items() if n.startswith(child_path)}
        # A stage of a ResNet is a list too, but its blocks have several depths: look inside.
        if is_list and len(child_depths) == 1 and min(child_depths) > 0:
            yield min(child_depths), child
        elif child_depths:
            yield from _listed_modules(child, child_path, depths)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def set_grad_checkpointing(tower: Any, enable: bool) -> None:
    """Keep only the inputs of blocks for backward, which computes the rest again. Raises
    UserError."""
    if isinstance(tower, TimmModel):
        trunk: Any = tower.trunk
        try:
            trunk.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError, TypeError) as error:
            raise UserError(_UNSUPPORTED.format(f"timm's {type(trunk).__name__}")) from error
    elif isinstance(tower, HFTextEncoder) and tower.transformer.supports_gradient_checkpointing:
        # transformers 5 renamed its public method, so the private one is called. Reentrant
        # checkpointing needs inputs with a gradient, unlike token ids, and disturbs DDP.
        recompute = partial(checkpoint, use_reentrant=False)
        tower.transformer._set_gradient_checkpointing(
            enable=enable, gradient_checkpointing_func=recompute
        )
    elif isinstance(tower, _TRANSFORMERS):
        # open_clip calls its custom blocks with too many arguments.
        for block in tower.transformer.resblocks:
            if isinstance(block, open_clip_transformer.CustomResidualAttentionBlock):
                raise UserError(_UNSUPPORTED.format("open_clip's transformer of custom blocks"))
        if isinstance(tower, VisionTransformer | TextTransformer):
            tower.transformer.grad_checkpointing = enable
        else:
            tower.set_grad_checkpointing(enable)
    else:
        raise UserError(_UNSUPPORTED.format(type(tower).__name__))
