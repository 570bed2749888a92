"""GradCache equals the whole batch, for every objective."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from methods import DROPOUT, MODEL, VIEWS, batch, build
from stepping import CPU, ONE_PROCESS
from torch import Tensor

from clipx.distributed.pool import LocalPool
from clipx.distributed.wrap import SingleProcess
from clipx.objectives import (
    bag_of_tokens,
    image_text,
    momentum,
    momentum_pairs,
    predictive,
    siamese,
    slip,
    two_view,
    weighted,
)
from clipx.training.learner import Learner
from clipx.training.precision import Precision
from clipx.training.step import Step

CONFIGS: dict[str, Any] = {
    "image_text": image_text.Config(),
    "two_view": two_view.Config(views=VIEWS),
    "slip": slip.Config(views=VIEWS),
    "slip, shared": slip.Config(views=VIEWS, share_view=True),
    "momentum": momentum.Config(views=VIEWS, queue=8),
    "momentum, v3": momentum.Config(views=VIEWS, queue=0, symmetric=True, predictor=True),
    "momentum_pairs": momentum_pairs.Config(),
    "predictive": predictive.Config(views=VIEWS, grid=3),
    "bag_of_tokens": bag_of_tokens.Config(),
    "bag_of_tokens, alone": bag_of_tokens.Config(contrast=False),
    "siamese images": siamese.Config(of="images"),
    "siamese texts": siamese.Config(of="texts"),
    "weighted": weighted.Config(
        objectives={"pairs": image_text.Config(), "views": two_view.Config(views=VIEWS)}
    ),
}


class Recording(torch.optim.SGD):
    """Keeps the gradients of each step."""

    def __init__(self, parameters: list[Any], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.gradients: list[list[Tensor | None]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = self.param_groups[0]["params"]
        self.gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
        super().step()


def two_steps(
    name: str, cfg: dict[str, Any], size: int | None, dtype: torch.dtype = torch.float32
) -> tuple[list[Any], Tensor]:
    """Gradients of both steps, and the loss of the second, which has the queue and averages of the
    first. The weights are the same float32 numbers in each dtype."""
    queue = 8 if name == "momentum_pairs" else 0
    objective = build(CONFIGS[name], cfg, queue=queue, vocab_size=cfg["text_cfg"]["vocab_size"])
    objective.to(dtype).train()
    optimizer = Recording([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    precision = Precision(torch.float32, CPU, None)
    wrapped = SingleProcess(objective)
    learner = Learner(ONE_PROCESS, objective.encoder, objective, wrapped, optimizer, precision)
    step = Step(learner, LocalPool(), micro_batch_size=size)
    torch.set_default_dtype(dtype)
    try:
        for seed in range(2):
            rows = batch(7, seed=seed)
            rows.views["text_2"] = rows.views["text"].roll(1, 0)
            metrics = step(rows).metrics
    finally:
        torch.set_default_dtype(torch.float32)
    return optimizer.gradients, metrics["loss"]


# The head of bag_of_tokens computes in float32.
IN_FLOAT64 = [name for name in CONFIGS if not name.startswith("bag_of_tokens")]


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_micro_batches_of_three_have_the_gradient_of_seven_rows(name: str) -> None:
    """Also where patches are dropped at random."""
    expected, _ = two_steps(name, DROPOUT, None, torch.float64)
    actual, _ = two_steps(name, DROPOUT, 3, torch.float64)
    assert actual[0][0].dtype == torch.float64
    for one, other in zip(actual, expected, strict=True):
        assert difference(one, other) <= 1e-13


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_in_float32_micro_batches_are_as_exact_as_the_whole_batch(name: str) -> None:
    """Float32 gives the whole batch's gradient to 4e-7 to 5e-6, which bounds what another order
    of the same sums can agree to."""
    exact, _ = two_steps(name, MODEL, None, torch.float64)
    whole, loss = two_steps(name, MODEL, None)
    parts, loss_of_parts = two_steps(name, MODEL, 3)
    assert loss_of_parts.item() == pytest.approx(loss.item(), rel=5e-6)
    rounding = difference(whole[0], exact[0])
    assert 0 < rounding < 1e-5
    assert difference(parts[0], exact[0]) <= max(1e-6, 2 * rounding)
    assert difference(parts[1], whole[1]) <= 5e-5  # with other weights, by that rounding


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in IN_FLOAT64])
def test_a_head_in_float32_gets_the_same_gradient_to_its_rounding(name: str) -> None:
    expected, loss = two_steps(name, DROPOUT, None)
    actual, loss_of_parts = two_steps(name, DROPOUT, 3)
    assert loss_of_parts.item() == pytest.approx(loss.item(), rel=5e-6)
    assert difference(actual[0], expected[0]) <= 3e-6
    assert difference(actual[1], expected[1]) <= 5e-5


def difference(first: list[Any], second: list[Any]) -> float:
    """Norm of the difference, as a share of the norm of the second."""
    differences = []
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        differences.append(None if one is None else one.double() - other.double())
    total = norm(second)
    assert total > 0
    return norm(differences) / total


def norm(gradients: list[Any]) -> float:
    return math.sqrt(sum(g.square().sum().item() for g in gradients if g is not None))
