"""A loss that computes its gradients itself, in full precision and in its forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_MATMULS: list[Any] = [torch.backends.cuda.matmul]
_PRECISION: tuple[str, Any] = ("allow_tf32", False)
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    # torch 2.9 and on. cuBLAS reads this one, and torch raises where both are read after one
    # was set; what the user has set by the old name is restored with it.
    _MATMULS.append(torch.backends.mkldnn.matmul)  # type: ignore[missing-attribute]
    _PRECISION = ("fp32_precision", "ieee")


@contextlib.contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Matmuls of float32 in float32: no autocast, no TF32 (10 bits of mantissa: logits near 100
    would step by 0.06), and no bfloat16 in oneDNN. Settings are restored."""
    name, value = _PRECISION
    before = [getattr(where, name) for where in _MATMULS]
    try:
        for where in _MATMULS:
            setattr(where, name, value)
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for where, old in zip(_MATMULS, before, strict=True):
            setattr(where, name, old)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, num: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[num:])
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients = ctx.saved_tensors
        scaled = [
            (g * grad).to(g.dtype) for g in gradients
        ]  # out of place: backward may come twice
        return (None, None, *scaled, *[None] * len(gradients))


def with_gradients(value: Tensor, inputs: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """`value` as a function of `inputs` whose gradients are known already: backward multiplies
    them by what comes in, and nothing else lives until then.

    value: (); gradients: one for each input, of its shape. All ranks must weigh the loss alike,
    because what the ranks said of each other's rows was added up before it was weighed.
    """
    fitting = [g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)]
    return _WithGradients.apply(value, len(inputs), *inputs, *fitting)
