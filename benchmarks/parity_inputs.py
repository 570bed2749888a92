"""The inputs of a loss on both sides of benchmarks/parity_losses.py: drawn once, sent as a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS, WIDTH, HIDDEN, TEACHER_WIDTH, QUEUE, CLASSES = 24, 16, 12, 10, 40, 8
TEACHER_SCALE = 30.0
MARGIN = 0.7
WIDTHS = {16: 1.0, 6: 0.5}
LEAVES = ("image", "text", "logit_scale", "logit_bias", "first_layer", "second_layer")


def draw(seed: int) -> dict[str, Tensor]:
    """Tensors by name, float64. Rows are not of unit norm: both sides normalize them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    image = normal(ROWS, WIDTH)
    return {
        "image": image,
        "text": image + normal(ROWS, WIDTH),
        "logit_scale": torch.tensor(2.659, dtype=torch.float64),  # ln(1 / 0.07), as in CLIP
        "logit_bias": torch.tensor(-10.0, dtype=torch.float64),
        "first_layer": normal(HIDDEN, WIDTH) / 4,  # of a small tower
        "second_layer": normal(WIDTH, HIDDEN) / 4,
        "past_image": F.normalize(normal(QUEUE, WIDTH), dim=1),
        "past_text": F.normalize(normal(QUEUE, WIDTH), dim=1),
        "teacher_image": F.normalize(normal(ROWS, TEACHER_WIDTH), dim=1),
        "teacher_text": F.normalize(normal(ROWS, TEACHER_WIDTH), dim=1),
        # Each class has three rows, because a row without another positive is left out by some.
        "classes": torch.arange(ROWS) % CLASSES,
        "labels": torch.randint(0, 2, (ROWS,), generator=generator),
    }


@dataclass(frozen=True)
class Inputs:
    """tensors: as drawn; those of LEAVES with gradient"""

    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def image(self) -> Tensor:
        """(B, D) of unit norm"""
        return F.normalize(self["image"], dim=1)

    @property
    def text(self) -> Tensor:
        return F.normalize(self["text"], dim=1)

    @property
    def scale(self) -> Tensor:
        return self["logit_scale"].exp()

    def leaves(self) -> list[Tensor]:
        return [self[name] for name in LEAVES]


def with_leaves(tensors: dict[str, Tensor]) -> Inputs:
    """A copy of the tensors, so that gradients of one loss do not add to those of another."""
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in LEAVES:
        copies[name].requires_grad_()
    return Inputs(copies)


Case = Callable[[Inputs], Tensor]
Outcome = dict[str, Tensor]
"""`value` and the gradient of each leaf that takes part."""


def outcome(case: Case, tensors: dict[str, Tensor]) -> Outcome:
    inputs = with_leaves(tensors)
    value = case(inputs)
    value.backward()
    result = {"value": value.detach()}
    for name, leaf in zip(LEAVES, inputs.leaves(), strict=True):
        if leaf.grad is not None:
            result[name] = leaf.grad
    return result
