"""How deep each parameter lies in its tower, which modules repeat, and activation checkpointing,
for all kinds of towers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import CustomResidualAttentionBlock
from open_clip.transformer import TextTransformer as TheirText
from open_clip.transformer import VisionTransformer as TheirVision
from timm.models import group_parameters
from torch import nn
from torch.utils.checkpoint import checkpoint

from clipx.models.text_transformer import TextTransformer
from clipx.models.vit import VisionTransformer
from clipx.types import UserError

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_STAGE = re.compile(r"layer\d\.\d+\.")


def tower_depths(tower: nn.Module) -> dict[str, int]:
    """Parameter name -> depth from the input. 0 is what comes before the first block, and a
    projection into the common space the last; a head alone has depth 0.

    These are the groups in which open_clip unlocks towers, where it does.
    """
    names = [name for name, _ in tower.named_parameters()]
    if isinstance(tower, VisionTransformer | TextTransformer | TheirVision | TheirText):
        return _transformer_depths(names)
    if isinstance(tower, ModifiedResNet):
        return _resnet_depths(names)
    if isinstance(tower, TimmModel):
        return _timm_depths(tower.trunk, names)
    if isinstance(tower, HFTextEncoder):
        return _huggingface_depths(tower, names)
    return dict.fromkeys(names, 0)


def _transformer_depths(names: Sequence[str]) -> dict[str, int]:
    """The norm after the last block goes with it."""
    blocks = {name: int(match[1]) for name in names if (match := _BLOCK.match(name))}
    last = 1 + max(blocks.values())

    def depth(name: str) -> int:
        if name in blocks:
            return 1 + blocks[name]
        if name.startswith(("ln_post", "ln_final")):
            return last
        return last + 1 if name.startswith(("proj", "text_projection", "attn_pool")) else 0

    return {name: depth(name) for name in names}


def _resnet_depths(names: Sequence[str]) -> dict[str, int]:
    blocks = dict.fromkeys(match[0] for name in names if (match := _STAGE.match(name)))
    depths = {block: 1 + i for i, block in enumerate(blocks)}

    def depth(name: str) -> int:
        match = _STAGE.match(name)
        return depths[match[0]] if match else (1 + len(blocks)) * name.startswith("attnpool")

    return {name: depth(name) for name in names}


def _timm_depths(trunk: Any, names: Sequence[str]) -> dict[str, int]:
    """As timm groups them for its own layer-wise learning rates; the head comes after."""
    groups: Any = group_parameters(trunk, trunk.group_matcher(coarse=False))
    depths = {f"trunk.{name}": depth for depth, group in groups.items() for name in group}
    return {name: depths.get(name, 1 + max(groups)) for name in names}


def _huggingface_depths(tower: HFTextEncoder, names: Sequence[str]) -> dict[str, int]:
    """Embeddings come before the longest list of modules, the last norm and a pooler after it."""
    lists = {n: m for n, m in tower.named_modules() if isinstance(m, nn.ModuleList)}
    blocks = max(lists, key=lambda name: len(lists[name])) + "."
    last, depth, out = len(lists[blocks[:-1]]), 0, {}
    for name in names:  # in the order of the tower's modules
        if name.startswith(blocks):
            depth = 1 + int(name.removeprefix(blocks).split(".")[0])
        out[name] = last + 1 if name.startswith("proj") else depth
    return out


def layer_depths(towers: dict[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Parameter name -> (depth from the input, number of depths of its tower).

    towers: by the name that begins their parameters' names
    """
    out = {}
    for prefix, tower in towers.items():
        depths = tower_depths(tower)
        count = 1 + max(depths.values(), default=0)
        out |= {f"{prefix}.{name}": (depth, count) for name, depth in depths.items()}
    return out


def blocks(tower: nn.Module) -> list[nn.Module]:
    """The modules that a tower is a stack of, from the input on: for each depth between its ends,
    the largest module of a list that holds parameters of this depth and no others."""
    depths, trunk, path = tower_depths(tower), tower, ""
    if isinstance(tower, TimmModel):
        trunk, path = tower.trunk, "trunk."
    elif isinstance(tower, HFTextEncoder):
        trunk, path = tower.transformer, "transformer."
    largest: dict[int, nn.Module] = {}
    for depth, module in _listed(trunk, path, depths):
        if depth not in largest or _size(module) > _size(largest[depth]):
            largest[depth] = module
    return [largest[depth] for depth in sorted(largest)]


def _listed(
    module: nn.Module, path: str, depths: dict[str, int]
) -> Iterator[tuple[int, nn.Module]]:
    for name, child in module.named_children():
        inside = {d for n, d in depths.items() if n.startswith(f"{path}{name}.")}
        in_list = isinstance(module, nn.ModuleList | nn.Sequential)
        if in_list and len(inside) == 1 and min(inside) > 0:
            yield min(inside), child
        elif inside:
            yield from _listed(child, f"{path}{name}.", depths)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def set_grad_checkpointing(tower: Any, enable: bool) -> None:
    """Whether the tower keeps only its blocks' inputs for the backward pass and computes the rest
    again. Raises UserError."""
    if isinstance(tower, TimmModel):
        trunk: Any = tower.trunk
        try:
            trunk.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError, TypeError) as error:
            raise UserError(_UNSUPPORTED.format(f"timm's {type(trunk).__name__}")) from error
    elif isinstance(tower, HFTextEncoder) and tower.transformer.supports_gradient_checkpointing:
        # Not by its public method, which transformers 5 renamed. Reentrant checkpointing needs
        # inputs with a gradient, which token ids have not, and gets in the way of DDP.
        recompute = partial(checkpoint, use_reentrant=False)
        tower.transformer._set_gradient_checkpointing(
            enable=enable, gradient_checkpointing_func=recompute
        )
    elif isinstance(tower, VisionTransformer | TextTransformer | TheirVision | TheirText):
        # open_clip calls its custom blocks with too many arguments.
        if any(isinstance(b, CustomResidualAttentionBlock) for b in tower.transformer.resblocks):
            raise UserError(_UNSUPPORTED.format("open_clip's transformer of custom blocks"))
        tower.set_grad_checkpointing(enable)
    else:
        raise UserError(_UNSUPPORTED.format(type(tower).__name__))


_UNSUPPORTED = (
    "activation checkpointing: {} does not support it; switch it off, and split the batch into "
    "micro-batches to save memory"
)
