from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_runs import MODEL
from torch import nn

from clipx.models.dual_encoder import DualEncoder
from clipx.training import precision
from clipx.training.gradients import clip_gradients
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.training.precision import (
    LossScaler,
    PrecisionKind,
    autocast,
    build_precision,
    compute_dtype,
)
from clipx.types import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _switches_as_before() -> Iterator[None]:
    yield
    precision._allow_tf32(False)


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_only_where_the_hardware_multiplies_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_has_bf16", lambda device: native)
    assert compute_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    assert compute_dtype("fp32", CPU) == torch.float32
    assert compute_dtype("tf32", CPU) == torch.float32
    assert compute_dtype("bf16", CPU) == torch.bfloat16
    assert compute_dtype("fp16", CPU) == torch.float16


def test_auto_answers_for_this_machine() -> None:
    """The question goes to private functions of torch: it fails here when they are renamed."""
    assert compute_dtype("auto", CPU) in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_autocast_multiplies_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    a = torch.ones(2, 2)
    with autocast(CPU, dtype):
        assert (a @ a).dtype == dtype
    assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize("kind", ["auto", "bf16", "fp16", "fp32"])
def test_only_float16_needs_a_scaler(kind: PrecisionKind) -> None:
    found = build_precision(kind, CPU)
    assert (found.scaler is not None) == (kind == "fp16")
    with autocast(found.device, found.dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == found.dtype


def train(scaler: LossScaler | None, dtype: torch.dtype) -> tuple[list[float], Any]:
    """(losses, norms of the unscaled gradients) of 12 updates on one batch; as in training/step.py,
    a gradient that is not finite updates nothing."""
    torch.manual_seed(0)
    model = DualEncoder(MODEL)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3))
    image, text = torch.randn(6, 3, 32, 32), torch.randint(1, 49408, (6, 8))
    losses, norms = [], []
    while len(losses) < 12:
        with autocast(CPU, dtype):
            image_features, text_features = model(image, text)
        logits = model.logit_scale.exp() * image_features @ text_features.T
        loss = nn.functional.cross_entropy(logits, torch.arange(6))
        (loss if scaler is None else loss * scaler.factor).backward()
        if scaler is not None:
            scaler.unscale(model.parameters())
        norm = clip_gradients(model.parameters(), 1.0)
        if norm.isfinite():
            optimizer.step()
            losses.append(loss.item())
            norms.append(norm.item())
        if scaler is not None:
            scaler.update(overflowed=not norm.isfinite())
            assert scaler.factor > 100
        optimizer.zero_grad()
    return losses, norms


def test_training_in_float16_follows_float32_with_clipping_after_unscaling() -> None:
    losses, norms = train(build_precision("fp16", CPU).scaler, torch.float16)
    expected_losses, expected_norms = train(None, torch.float32)
    assert expected_losses[-1] < 0.5 * expected_losses[0]
    # float16 has 11 bits, and Adam's first steps are signs of gradients
    assert losses == pytest.approx(expected_losses, rel=0.05, abs=0.02)
    assert norms[:3] == pytest.approx(expected_norms[:3], rel=0.02)


def test_the_scaler_halves_on_overflow_and_goes_on_from_its_state() -> None:
    scaler, weight = build_precision("fp16", CPU).scaler, nn.Parameter(torch.ones(2))
    assert scaler is not None
    ((weight * math.inf).sum() * scaler.factor).backward()
    scaler.unscale([weight])
    assert not clip_gradients([weight], 1.0).isfinite()
    scaler.update(overflowed=True)
    assert scaler.factor == 2.0**15
    again = build_precision("fp16", CPU).scaler
    assert again is not None
    again.load_state_dict(scaler.state_dict())
    assert again.factor == 2.0**15
    assert again.state_dict() == scaler.state_dict()


def tf32() -> tuple[bool, bool]:
    """Whether (matmuls, convolutions) may round to it."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("kind", ["tf32", "fp32", "bf16", "auto"])
def test_tf32_is_on_where_it_was_asked_for_and_nowhere_else(
    kind: PrecisionKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switches are torch's, and are there without a GPU; the device's answers are made up."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(precision, "_has_bf16", lambda device: True)
    for before in (True, False):
        precision._allow_tf32(before)
        build_precision(kind, CUDA)
        assert tf32() == (kind == "tf32",) * 2
        assert torch.get_float32_matmul_precision() == ("high" if kind == "tf32" else "highest")


def test_tf32_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"tf32: device cpu has no TF32.*precision=fp32"):
        build_precision("tf32", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(UserError, match="tf32: Tesla V100 has no TF32"):
        build_precision("tf32", CUDA)


def test_float16_is_refused_with_the_reason_where_the_device_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def conv2d(x: Any, weight: Any) -> None:
        raise RuntimeError("no kernel for Half\nand a long trace")

    monkeypatch.setattr(precision.F, "conv2d", conv2d)
    with pytest.raises(UserError, match=r"fp16: device cpu .*\(no kernel for Half\); use pre"):
        build_precision("fp16", CPU)
