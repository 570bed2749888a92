"""The dtype of matmuls, and loss scaling for float16. Weights, optimizer state, features and the
loss are float32 in any case."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.collectives import local
from clipx.types import PrecisionKind, UserError


class LossScaler:
    """A factor that keeps gradients above 6e-8, float16's smallest number (arXiv:1710.03740). It is
    halved after each overflow, and doubled after `grow_after` steps without one.

    torch's GradScaler does the same, but takes no sharded parameters beside whole ones, and asks
    the device again whether the gradient is finite, which the step knows already.
    """

    def __init__(self, factor: float = 2.0**16, *, grow_after: int = 2000) -> None:
        self.factor = factor
        self._grow_after = grow_after
        self._num_good_steps = 0

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients of the parameters by the factor, in place."""
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.factor)  # a power of two, so this is exact

    def update(self, *, overflowed: bool) -> None:
        """Called after each step, with the same value on all ranks."""
        if overflowed:
            self.factor /= 2
            self._num_good_steps = 0
            return
        self._num_good_steps += 1
        if self._num_good_steps == self._grow_after:
            self.factor *= 2
            self._num_good_steps = 0

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "good": self._num_good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor = state["factor"]
        self._num_good_steps = int(state["good"])


@dataclass(frozen=True)
class Precision:
    """scaler: for float16; None for other dtypes"""

    dtype: torch.dtype
    device: torch.device
    scaler: LossScaler | None = None

    def scaled(self, value: Tensor) -> Tensor:
        """A loss, or a gradient that backward begins with, times the scaler's factor."""
        return value if self.scaler is None else value * self.scaler.factor


def build_precision(kind: PrecisionKind, device: torch.device) -> Precision:
    """Also sets, for the whole process, whether float32 may be rounded to TF32. Raises UserError
    if the device does not support `kind`."""
    has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if kind == "tf32" and not has_tf32:
        raise UserError(
            f"precision tf32: {_device_name(device)} has no TF32, which came with NVIDIA's Ampere "
            "(2020); use precision=fp32, or auto"
        )
    dtype = compute_dtype(kind, device)
    if dtype == torch.float16 and (fault := _float16_fault(device)):
        raise UserError(
            f"precision fp16: {_device_name(device)} does not multiply float16 ({fault}); "
            "use precision=fp32, or auto"
        )
    _allow_tf32(kind == "tf32")
    scaler = LossScaler() if dtype == torch.float16 else None
    return Precision(dtype, device, scaler)


def compute_dtype(kind: PrecisionKind, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    if kind == "auto":
        return torch.bfloat16 if _has_bf16(device) else torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind, torch.float32)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    # Weights and images are float32 already, so float32 needs no casts.
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public function for this. Emulated bfloat16 on older CPUs is slower than float32.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _float16_fault(device: torch.device) -> str | None:
    """The error of a matmul and a convolution with gradients in float16; None if they work."""
    x = torch.ones(1, 2, 4, 4, device=device, dtype=torch.float16, requires_grad=True)
    try:
        (F.conv2d(x, x).flatten(1) @ x.flatten()[None, :1]).sum().backward()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _allow_tf32(allowed: bool) -> None:
    """For matmuls (off by default) and convolutions (on by default)."""
    with warnings.catch_warnings():
        # torch 2.9 has other names for these two and warns once. But if only the new names are
        # set, its own torch.compile reads the old ones and raises.
        warnings.filterwarnings("ignore", message=".*TF32.*")
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device}"
