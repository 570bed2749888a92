"""Which dtype matmuls run in. Weights, optimizer state, features and the loss are float32
always."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16" or _has_bf16(device):
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this; emulated bfloat16 on older CPUs is slower than float32
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
