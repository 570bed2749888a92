"""Two ways to compute one thing, which must agree in their gradients too."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_same_with_gradients(
    one: Tensor, other: Tensor, inputs: list[Tensor], tol: float
) -> None:
    weight = torch.randn(one.shape, generator=torch.Generator().manual_seed(2), dtype=one.dtype)
    torch.testing.assert_close(one, other, rtol=tol, atol=tol)
    actual = torch.autograd.grad((one * weight).sum(), inputs)
    expected = torch.autograd.grad((other * weight).sum(), inputs)
    for value, reference in zip(actual, expected, strict=True):
        allowed = tol * (1 + reference.abs().max().item())
        torch.testing.assert_close(value, reference, rtol=0, atol=allowed)
