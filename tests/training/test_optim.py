"""Which parameters get which settings, by name, and what a step of each optimizer does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from locked_towers import model_json, write_bert
from tiny_runs import MODEL
from torch import Tensor, nn

from clipx.config import build, to_data
from clipx.models.dual_encoder import DualEncoder
from clipx.training.optim import JoinedOptimizer, OptimConfig, build_optimizer
from clipx.types import UserError

BLOCK = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
HIDDEN = {
    f"{tower}.transformer.resblocks.{block}.{name}"
    for tower in ("visual", "text")
    for block in (0, 1)
    for name in BLOCK
}
DECAYING = {"visual.conv1.weight", "visual.proj", "text.text_projection", *HIDDEN}
KINDS = ["adamw", "lamb", "muon"]
muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")


def encoder() -> DualEncoder:
    """Of two towers with embeddings, two blocks and a head: depths 0 to 3."""
    torch.manual_seed(0)
    return DualEncoder(MODEL)


def settings(model: nn.Module, config: OptimConfig) -> dict[str, dict[str, Any]]:
    """The group of each parameter that is in one, by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    found = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert len(dict(found)) == len(found), "no parameter is in two groups"
    return dict(found)


def decaying(model: nn.Module) -> set[str]:
    groups = settings(model, OptimConfig(weight_decay=0.3))
    assert {group["weight_decay"] for group in groups.values()} <= {0.0, 0.3}
    return {name for name, group in groups.items() if group["weight_decay"] > 0}


def test_matrices_decay_and_gains_biases_embeddings_and_temperature_do_not() -> None:
    model = DualEncoder(MODEL | {"init_logit_bias": -10})
    assert decaying(model) == DECAYING
    rest = {name for name, _ in model.named_parameters()} - DECAYING
    assert rest <= set(settings(model, OptimConfig()))
    assert rest >= {
        "logit_scale",
        "logit_bias",
        "visual.class_embedding",
        "visual.positional_embedding",
        "text.token_embedding.weight",
        "text.positional_embedding",
        "text.ln_final.weight",
    }


def test_layer_scale_is_a_gain_and_does_not_decay() -> None:
    model = DualEncoder(MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"ls_init_value": 0.1}})
    assert "visual.transformer.resblocks.0.ls_1.gamma" in dict(model.named_parameters())
    assert decaying(model) == DECAYING


SMALL = {"img_size": 64, "embed_dim": 32, "depth": 1, "num_heads": 2}
INPUTS_OF_TIMM: dict[str, tuple[dict[str, Any], set[str]]] = {
    "vit_tiny_patch16_224": (SMALL | {"init_values": 0.1}, {"cls_token", "pos_embed"}),
    "vit_base_patch16_siglip_224": (SMALL, {"pos_embed", "attn_pool.latent"}),
    "vit_betwixt_patch16_reg4_gap_256": (SMALL, {"reg_token", "pos_embed"}),
    "beit_base_patch16_224": (
        SMALL,
        {"cls_token", "blocks.0.attn.relative_position_bias_table"},
    ),
    "levit_128s": ({"img_size": 224}, {"stages.0.blocks.0.attn.attention_biases"}),
    "convnext_atto": ({"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}, set()),
    "fastvit_mci0": ({}, {"stages.0.blocks.0.layer_scale.gamma"}),  # (64, 1, 1)
}


@pytest.mark.parametrize("name", INPUTS_OF_TIMM)
def test_of_timm_what_is_added_to_an_input_does_not_decay_and_all_other_matrices_do(
    name: str,
) -> None:
    arguments, inputs = INPUTS_OF_TIMM[name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **arguments)
    found = decaying(model)
    assert inputs <= {n for n, _ in model.named_parameters()} - found
    for parameter, tensor in model.named_parameters():
        if parameter.endswith((".weight", "_weight")) and tensor.squeeze().ndim >= 2:
            assert parameter in found
        if tensor.ndim == 1:
            assert parameter not in found


def test_of_a_resnet_and_a_hugging_face_tower_kernels_and_matrices_decay(tmp_path: Path) -> None:
    cfg = model_json(write_bert(tmp_path / "bert"))
    cfg["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    model = DualEncoder(cfg)
    found = decaying(model)
    every = {name for name, _ in model.named_parameters()}
    embeddings = {
        "visual.attnpool.positional_embedding",
        *(n for n in every if n.startswith("text.transformer.embeddings.")),
    }
    assert len(embeddings) == 1 + 5  # words, positions, segments; LayerNorm's two
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    assert found == {name for name in every - embeddings if shapes[name] >= 2}
    assert {"visual.conv1.weight", "visual.attnpool.q_proj.weight", "text.proj.0.weight"} <= found


def test_frozen_parameters_are_in_no_group() -> None:
    model = DualEncoder(MODEL)
    model.visual.requires_grad_(False)
    names = set(settings(model, OptimConfig()))
    assert names == {n for n, _ in model.named_parameters() if not n.startswith("visual.")}


def test_parameters_with_the_same_settings_share_a_group() -> None:
    """What decays, what does not, and scalars, which no rank shares with another."""
    assert len(build_optimizer(encoder(), OptimConfig()).param_groups) == 3
    config = OptimConfig(layer_decay=0.5)
    decays, does_not, scalars = 4, 3, 1  # a head has no gains
    found = build_optimizer(encoder(), config).param_groups
    assert len(found) == decays + does_not + scalars


@pytest.mark.parametrize("kind", [k if k != "muon" else pytest.param(k, marks=muon) for k in KINDS])
def test_learning_rates_fall_by_layer_decay_from_the_head_down(kind: Any) -> None:
    both = settings(encoder(), OptimConfig(kind=kind, lr=1e-3, layer_decay=0.5))
    for name, scale in {
        "logit_scale": 1.0,
        "visual.proj": 1.0,
        "text.ln_final.bias": 0.5,
        "visual.transformer.resblocks.1.mlp.c_fc.weight": 0.5,
        "text.transformer.resblocks.0.ln_1.weight": 0.25,
        "text.token_embedding.weight": 0.125,
        "visual.conv1.weight": 0.125,
    }.items():
        assert both[name]["lr_scale"] == scale, name
        assert both[name]["lr"] == 1e-3 * scale
    one = settings(encoder(), OptimConfig(kind=kind, layer_decay={"visual": 0.5}))
    assert one["visual.conv1.weight"]["lr_scale"] == 0.125
    assert one["text.token_embedding.weight"]["lr_scale"] == 1.0
    none = settings(encoder(), OptimConfig(kind=kind))
    assert {group["lr_scale"] for group in none.values()} == {1.0}


def test_a_step_without_gradient_shrinks_what_decays_by_lr_times_decay_and_nothing_else() -> None:
    model = DualEncoder(MODEL)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name in DECAYING else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0)


def draw_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def first_step(model: nn.Module, config: OptimConfig) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """(weight before, gradient, update / lr) of each parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    draw_gradients(model, 0)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    build_optimizer(model, config).step()
    return {
        name: (before[name], gradients[name], (p.detach() - before[name]) / config.lr)
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_lamb_moves_a_matrix_by_lr_times_its_norm_along_adams_direction(
    weight_decay: float,
) -> None:
    """In its first step that direction is the sign of the gradient, plus decay x weight."""
    config = OptimConfig(kind="lamb", lr=0.1, weight_decay=weight_decay, eps=1e-12)
    for name, (weight, gradient, update) in first_step(DualEncoder(MODEL), config).items():
        expected = -gradient.sign()
        if name in DECAYING:
            expected -= weight_decay * weight
            expected *= weight.norm() / expected.norm()
        torch.testing.assert_close(update, expected, rtol=1e-3, atol=2e-5)


@muon
def test_muon_gives_hidden_matrices_an_update_of_equal_singular_values_and_adamws_size() -> None:
    """And only those: AdamW has the rest, bit by bit as if it were alone."""
    config = OptimConfig(kind="muon", lr=0.1, weight_decay=0.0)
    mine = first_step(encoder(), config)
    adamw = first_step(encoder(), OptimConfig(lr=0.1, weight_decay=0.0))
    for name, (_, gradient, update) in mine.items():
        if name in HIDDEN:
            u, _, v = torch.linalg.svd(gradient, full_matrices=False)
            update = -update / (0.2 * max(update.shape) ** 0.5)
            assert torch.cosine_similarity(update.flatten(), (u @ v).flatten(), dim=0) > 0.95
            values = torch.linalg.svdvals(update)
            assert values.max() < 1.3, "five Newton-Schulz steps reach 0.7 to 1.2, in bfloat16"
            assert (values > 0.6).float().mean() > 0.9, "but not for those that were nearly 0"
        else:
            assert torch.equal(update, adamw[name][2]), name


@muon
def test_muon_takes_the_rate_of_its_groups_and_decays_its_matrices() -> None:
    model = encoder()
    optimizer = build_optimizer(model, OptimConfig(kind="muon", weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name in DECAYING else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [k if k != "muon" else pytest.param(k, marks=muon) for k in KINDS])
def test_a_run_that_was_saved_goes_on_with_the_same_bits(kind: Any) -> None:
    config = OptimConfig(kind=kind, lr=1e-2, layer_decay=0.7, weight_decay=0.1)

    def walk(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        for step in range(start, stop):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / (1 + step) * group["lr_scale"]
            draw_gradients(model, step)
            optimizer.step()

    straight = encoder()
    walk(straight, build_optimizer(straight, config), 0, 6)

    first = encoder()
    optimizer = build_optimizer(first, config)
    walk(first, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "model": first.state_dict()}, file)
    walk(first, optimizer, 3, 6)  # saving changes nothing

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = encoder()
    second.load_state_dict(saved["model"])
    optimizer = build_optimizer(second, config)
    optimizer.load_state_dict(saved["optimizer"])
    walk(second, optimizer, 3, 6)
    for name, expected in straight.state_dict().items():
        assert torch.equal(first.state_dict()[name], expected), name
        assert torch.equal(second.state_dict()[name], expected), name


@muon
def test_joined_optimizers_take_a_closure_and_forget_gradients_like_one() -> None:
    model = encoder()
    optimizer = build_optimizer(model, OptimConfig(kind="muon"))
    assert isinstance(optimizer, JoinedOptimizer)

    def closure() -> float:
        assert torch.is_grad_enabled()
        draw_gradients(model, 0)
        return 2.5

    assert optimizer.step(closure) == 2.5
    assert len(optimizer.state) == len(list(model.parameters()))
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@muon
def test_muon_without_hidden_matrices_is_refused() -> None:
    model = encoder()
    model.lock(["visual.transformer", "text.transformer"])
    with pytest.raises(UserError, match=r"optim\.kind muon: no matrix .*use optim\.kind=adamw"):
        build_optimizer(model, OptimConfig(kind="muon"))


def test_muon_on_a_torch_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match=r"needs torch 2\.9 or newer.*optim\.kind=adamw"):
        build_optimizer(encoder(), OptimConfig(kind="muon"))


def test_settings_reach_the_optimizer() -> None:
    config = OptimConfig(lr=3e-4, betas=(0.8, 0.95), eps=1e-7)
    defaults = build_optimizer(DualEncoder(MODEL), config).defaults
    assert (defaults["lr"], defaults["betas"], defaults["eps"]) == (3e-4, (0.8, 0.95), 1e-7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0}, r"lr: .*greater than"),
        ({"lr": -1e-3}, r"lr: .*greater than"),
        ({"weight_decay": -0.1}, r"weight_decay: .*greater than"),
        ({"momentum": 1}, r"momentum: .*less than"),
        ({"kind": "adam"}, r"kind: .*'adamw', 'lamb' or 'muon'"),
        ({"layer_decay": 0}, r"layer_decay.*greater than"),
        ({"layer_decay": {"visual": 1.5}}, r"layer_decay.*less than or equal to 1"),
        ({"layer_decay": {"image": 0.5}}, r"layer_decay.*'visual' or 'text'"),
        ({"schedule": {"kind": "step"}}, r"schedule.kind: .*'wsd'"),
    ],
)
def test_what_is_out_of_range_or_unknown_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(OptimConfig, wrong, where="test")


@pytest.mark.parametrize("given", [1, 0.75, "0.75", {"visual": 0.75, "text": 0.9}, {"text": 0.9}])
def test_layer_decay_is_one_number_or_one_for_each_tower(given: Any) -> None:
    config = build(OptimConfig, {"layer_decay": given}, where="test")
    assert build(OptimConfig, to_data(config), where="test") == config
    expected = given if isinstance(given, dict) else float(given)
    assert config.layer_decay == expected
