"""Inputs of a contrastive loss, and how a loss is compared with its oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from clipx.types import LossOutput, Negatives

# Sums of up to some hundred terms of size 1 to 100 in another order: 1e-13 off. Nothing wrong is
# that close.
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@dataclass(frozen=True)
class Inputs:
    """image, text: (B, D) matched unit rows; ids: (B, K) with many equal ones, or None; past:
    image, text and ids of earlier batches"""

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    logit_bias: Tensor
    ids: Tensor | None
    past: tuple[Tensor, Tensor, Tensor | None] | None

    @classmethod
    def draw(
        cls,
        size: int,
        *,
        scale: float = 1 / 0.07,
        bias: float = -10.0,
        kinds: int = 0,
        num_past: int = 0,
        seed: int = 0,
        noise: float = 0.5,
        dtype: torch.dtype = torch.float64,
    ) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def pairs(number: int) -> tuple[Tensor, Tensor, Tensor | None]:
            image = torch.randn(number, 8, generator=generator, dtype=torch.float64)
            other = torch.randn(number, 8, generator=generator, dtype=torch.float64)
            rows = [F.normalize(x, dim=-1).to(dtype) for x in (image, image + noise * other)]
            shape = (number, kinds)
            ids = torch.randint(0, 1 + 2 * size, shape, generator=generator) if kinds else None
            return rows[0], rows[1], ids

        image, text, ids = pairs(size)
        return cls(
            image.requires_grad_(),
            text.requires_grad_(),
            torch.tensor(math.log(scale), dtype=dtype, requires_grad=True),
            torch.tensor(bias, dtype=dtype, requires_grad=True),
            ids,
            pairs(num_past) if num_past else None,
        )

    @property
    def negatives(self) -> Negatives | None:
        return None if self.past is None else Negatives(*self.past)

    def leaves(self, *, bias: bool) -> list[Tensor]:
        return [self.image, self.text, self.logit_scale, *([self.logit_bias] if bias else [])]


def inputs() -> st.SearchStrategy[Inputs]:
    return st.builds(
        Inputs.draw,
        st.integers(1, 12),
        scale=st.sampled_from([1.0, 1 / 0.07, 100.0]),
        bias=st.sampled_from([-10.0, 0.0, 5.0]),
        kinds=st.integers(0, 2),
        num_past=st.sampled_from([0, 1, 7]),
        seed=st.integers(0, 1000),
        noise=st.sampled_from([0.0, 0.5, 3.0]),
    )


def assert_same(actual: LossOutput, expected: Tensor, leaves: list[Tensor]) -> None:
    """Value and every gradient equal the oracle's."""
    torch.testing.assert_close(actual.loss.detach(), expected.detach(), **EXACT)
    value = torch.autograd.grad(actual.loss, leaves)
    for gradient, reference in zip(value, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(gradient, reference, **EXACT)


def small_tiles(
    set_attribute: Callable[[str, object], None], *, rows: int, size_bytes: int, kept: int
) -> None:
    """Cut even small matrices into many tiles. set_attribute: monkeypatch's"""
    module = "clipx.losses._tiles."
    set_attribute(module + "TILE_ROWS", rows)
    set_attribute(module + "CPU_TILE_BYTES", size_bytes)
    set_attribute(module + "KEPT_TILES", kept)
