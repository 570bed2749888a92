"""Which parameters decay, by name."""

from __future__ import annotations

import pytest
import torch
from training import MODEL

from clipx.engine.optim import OptimConfig, build_optimizer
from clipx.models.dual_encoder import DualEncoder

BLOCK = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
DECAYING = {
    "visual.conv1.weight",
    "visual.proj",
    "text.text_projection",
    *(
        f"{tower}.transformer.resblocks.{block}.{name}"
        for tower in ("visual", "text")
        for block in (0, 1)
        for name in BLOCK
    ),
}


def groups(model: DualEncoder, config: OptimConfig) -> list[tuple[float, set[str]]]:
    """(weight decay, names) of each group."""
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    return [
        (g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in optimizer.param_groups
    ]


def test_matrices_decay_and_gains_biases_embeddings_and_temperature_do_not() -> None:
    model = DualEncoder(MODEL | {"init_logit_bias": -10})
    (decay, decaying), (none, rest) = groups(model, OptimConfig(weight_decay=0.3))
    assert (decay, none) == (0.3, 0.0)
    assert decaying == DECAYING
    assert rest == {name for name, _ in model.named_parameters()} - DECAYING
    for name in (
        "logit_scale",
        "logit_bias",
        "visual.class_embedding",
        "visual.positional_embedding",
        "text.token_embedding.weight",
        "text.positional_embedding",
        "text.ln_final.weight",
    ):
        assert name in rest


def test_layer_scale_is_a_gain_and_does_not_decay() -> None:
    model = DualEncoder(MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"ls_init_value": 0.1}})
    (_, decaying), (_, rest) = groups(model, OptimConfig())
    assert "visual.transformer.resblocks.0.ls_1.gamma" in rest
    assert decaying == DECAYING


def test_frozen_parameters_are_in_no_group() -> None:
    model = DualEncoder(MODEL)
    model.visual.requires_grad_(False)
    for _, names in groups(model, OptimConfig()):
        assert not any(name.startswith("visual.") for name in names)


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


def test_settings_reach_the_optimizer() -> None:
    config = OptimConfig(lr=3e-4, betas=(0.8, 0.95), eps=1e-7)
    defaults = build_optimizer(DualEncoder(MODEL), config).defaults
    assert (defaults["lr"], defaults["betas"], defaults["eps"]) == (3e-4, (0.8, 0.95), 1e-7)


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"lr": -1e-3}, {"weight_decay": -0.1}])
def test_a_rate_or_decay_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="greater than"):
        OptimConfig(**wrong)
