"""Which dtype matmuls run in. Weights, optimizer state, features and the loss are float32
always."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from clipx.training.loss_scale import LossScaler
from clipx.types import UserError

PrecisionKind = Literal["auto", "bf16", "fp16", "fp32", "tf32"]


@dataclass(frozen=True)
class Precision:
    """scaler: keeps the gradients of float16 within its range; None for other dtypes"""

    dtype: torch.dtype
    device: torch.device
    scaler: LossScaler | None = None

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.dtype)


def build_precision(kind: PrecisionKind, device: torch.device) -> Precision:
    """Also sets, for the whole process, whether float32 may be rounded to TF32. Raises UserError
    where the device cannot do what was asked for."""
    if kind == "tf32" and not _has_tf32(device):
        raise UserError(
            f"precision tf32: {_named(device)} has no TF32, which came with NVIDIA's Ampere (2020);"
            " use precision=fp32, or auto"
        )
    dtype = compute_dtype(kind, device)
    if dtype == torch.float16 and (fault := _float16_fault(device)):
        raise UserError(
            f"precision fp16: {_named(device)} does not multiply float16 ({fault}); "
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
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this; emulated bfloat16 on older CPUs is slower than float32
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _float16_fault(device: torch.device) -> str | None:
    """What the device says to a matmul and a convolution with their gradients, if it refuses."""
    x = torch.ones(1, 2, 4, 4, device=device, dtype=torch.float16, requires_grad=True)
    try:
        (F.conv2d(x, x).flatten(1) @ x.flatten()[None, :1]).sum().backward()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _allow_tf32(allowed: bool) -> None:
    """For matmuls (off by default) and convolutions (on by default)."""
    with warnings.catch_warnings():
        # torch 2.9 has other names for these two and asks for them once. But where those are used
        # alone, its own torch.compile reads the old ones and raises.
        warnings.filterwarnings("ignore", message=".*TF32.*")
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device}"
