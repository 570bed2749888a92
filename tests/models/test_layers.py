"""Depths of parameters, blocks and activation checkpointing, for each kind of tower."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from small_models import KINDS, captions, images, small, small_trunks, stirred, write_folder
from torch import nn

from clipx.models.dual_encoder import DualEncoder
from clipx.models.layers import set_grad_checkpointing, tower_depths
from clipx.models.model_json import read_model_json
from clipx.types import UserError

pytest.importorskip("transformers")
TIMM = {"convnext_base", "EVA02-B-16", "MobileCLIP-S1", "PE-Core-B-16", "ViT-B-16-SigLIP"} | {
    "ViT-B-16-SigLIP2",
    "swin_base_patch4_window7_224",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
}
HUGGING_FACE = {kind for kind in KINDS if any(part in kind for part in ("bert", "mt5", "nllb"))}


def read(kind: str, folder: Path) -> dict[str, Any]:
    return read_model_json(write_folder(small(kind, folder / "text"), folder / "model"))


def build(cfg: dict[str, Any]) -> DualEncoder:
    with small_trunks():
        return DualEncoder(cfg | {"text_cfg": cfg["text_cfg"]})


def reference(cfg: dict[str, Any]) -> nn.Module:
    with small_trunks():
        return open_clip.CustomTextCLIP(
            **{k: v for k, v in cfg.items() if k[-4:] not in ("text", "cess")}
        )


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"RN50"}))
def test_unlocked_groups_of_images_are_those_of_open_clip(kind: str, tmp_path: Path) -> None:
    cfg = read(kind, tmp_path)
    part = "visual.trunk" if kind in TIMM else "visual"
    groups = {d for n, (d, _) in build(cfg).layer_depths().items() if n.startswith(f"{part}.")}
    for count in range(1, min(4, len(groups))):
        ours, other = build(cfg), reference(cfg)
        ours.lock([part], {"visual": count})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # open_clip imports timm by an old path
            other.lock_image_tower(unlocked_groups=count)
        assert trained(ours) == trained(other)
        assert trained(ours) < trained(build(cfg))


@pytest.mark.parametrize("kind", ["ViT-B-32", "ViT-B-16-SigLIP", "ViT-H-14-worldwide"])
def test_unlocked_groups_of_texts_are_those_of_open_clip(kind: str, tmp_path: Path) -> None:
    cfg = read(kind, tmp_path)
    for count in (1, 2, 3):
        ours, other = build(cfg), reference(cfg)
        ours.lock(["text"], {"text": count})
        other.lock_text_tower(unlocked_layers=count)
        assert trained(ours) == trained(other)


@pytest.mark.parametrize(
    "kind", ["roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32", "mt5-base-ViT-B-32"]
)
def test_unlocked_layers_of_transformers_are_those_of_open_clip(kind: str, tmp_path: Path) -> None:
    cfg = read(kind, tmp_path)
    for count in (1, 2):
        ours, other = build(cfg), reference(cfg)
        ours.lock(["text.transformer"], {"text": count})
        other.lock_text_tower(unlocked_layers=count)
        assert trained(ours) == trained(other)


def order_of_gradients(tower: nn.Module, x: torch.Tensor) -> list[str]:
    """Names in the order in which backward reaches their parameters: from the output."""
    order: list[str] = []
    for name, parameter in tower.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, n=name: order.append(n))
    out = tower(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return order


@pytest.mark.parametrize("kind", KINDS)
def test_depths_count_from_the_input(kind: str, tmp_path: Path) -> None:
    """Backward reaches blocks in the opposite order. What comes before the first block and after
    the last runs beside others, so that only blocks tell."""
    cfg = read(kind, tmp_path)
    model = build(cfg)
    for tower, x in ((model.visual, images(cfg, 2)), (model.text, captions(cfg, (4, 9), pad_id=1))):
        depths = tower_depths(tower)
        assert set(depths) == {n for n, _ in tower.named_parameters()}
        assert set(depths.values()) == set(range(1 + max(depths.values())))  # without gaps
        first: dict[int, int] = {}
        for index, name in enumerate(order_of_gradients(tower, x)):
            first.setdefault(depths[name], index)
        blocks = [first[d] for d in range(1, max(first))]
        assert blocks == sorted(blocks, reverse=True)
        assert len(blocks) >= 1


def test_depths_have_the_numbers_of_their_towers_and_scalars_are_of_none(tmp_path: Path) -> None:
    depths = build(read("ViT-B-16-SigLIP", tmp_path)).layer_depths()
    assert depths["logit_scale"] == depths["logit_bias"] == (0, 1)
    assert depths["text.token_embedding.weight"] == (0, 5)  # 3 blocks, between embeddings and head
    assert depths["text.transformer.resblocks.2.ln_1.weight"] == depths["text.ln_final.bias"]
    assert depths["text.ln_final.bias"] == (3, 5)
    assert depths["text.text_projection.bias"] == (4, 5)
    assert depths["visual.trunk.pos_embed"] == (0, 4)  # 2 blocks, then attention pooling
    assert depths["visual.trunk.attn_pool.latent"] == (3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_most_of_a_tower_and_share_nothing(kind: str, tmp_path: Path) -> None:
    model = build(read(kind, tmp_path))
    depths = model.layer_depths()
    names = {id(m): n for n, m in model.named_modules()}
    actual = [names[id(block)] for block in model.blocks()]
    assert not any(
        a != b and f"{a}.".startswith(f"{b}.") for a, b in itertools.product(actual, actual)
    )
    for block in actual:
        inside = {depth for name, depth in depths.items() if name.startswith(f"{block}.")}
        assert len(inside) == 1
    vision, text = ([n for n in actual if n.startswith(tower)] for tower in ("visual", "text"))
    assert len(text) == (2 if kind in HUGGING_FACE else 3)
    expected = {
        "convnext_base": 5,
        "swin_base_patch4_window7_224": 5,
        "MobileCLIP-S1": 6,
        "RN50": 5,
    }
    assert len(vision) == expected.get(kind, 2 if kind in TIMM else 3)


def test_heads_alone_have_no_blocks_and_one_depth() -> None:
    cfg = {"embed_dim": 3, "vision_cfg": {}, "text_cfg": {}}
    heads = DualEncoder(cfg, (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), nn.Linear(2, 3)))
    assert set(heads.layer_depths().values()) == {(0, 1)}
    assert heads.blocks() == []


# One of each way to checkpoint: our own towers, timm's by stages and by blocks, transformers'.
QUICK = ("ViT-B-32", "convnext_base", "ViT-B-16-SigLIP", "bert")
CHECKPOINTED = sorted(set(KINDS) - {"RN50"})


def gradients_and_saved(tower: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients by name, and bytes of the activations that wait for the backward pass."""
    saved: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in tower.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    tower.zero_grad()
    torch.manual_seed(0)  # dropout and drop path draw the same
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = tower(x)
    held = sum(saved.values())
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}, held


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in CHECKPOINTED]
)
def test_checkpointing_keeps_gradients_and_less_memory(kind: str, tmp_path: Path) -> None:
    cfg = read(kind, tmp_path)
    model = build(cfg)
    stirred(model).train()
    for tower, x in ((model.visual, images(cfg)), (model.text, captions(cfg, pad_id=1))):
        expected, plain = gradients_and_saved(tower, x)
        set_grad_checkpointing(tower, True)
        actual, held = gradients_and_saved(tower, x)
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            allowed = 1e-5 * gradient.abs().max().item() + 1e-7
            torch.testing.assert_close(actual[name], gradient, rtol=0, atol=allowed, msg=name)
        assert held < 0.7 * plain, f"{held} of {plain} bytes"
        set_grad_checkpointing(tower, False)
        assert gradients_and_saved(tower, x)[1] == plain


def test_a_tower_without_support_for_checkpointing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ModifiedResNet does not support it"):
        build(read("RN50", tmp_path)).set_grad_checkpointing(True)
    cfg = read("ViT-B-16-SigLIP", tmp_path)
    cfg["text_cfg"]["qk_norm"] = True
    with pytest.raises(UserError, match="custom blocks"):
        set_grad_checkpointing(build(cfg).text, True)
