"""The settings under which a loss multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from clipx.losses._tiles import full_precision


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def flags() -> list[Any]:
    actual: list[Any] = [torch.is_autocast_enabled("cpu")]
    cuda = torch.backends.cuda.matmul
    if hasattr(cuda, "fp32_precision"):
        return [*actual, cuda.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]
    return [*actual, cuda.allow_tf32]


def set_by(way: str) -> None:
    if way == "allow_tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif way == "fp32_precision":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision(way)


@pytest.mark.parametrize("way", ["highest", "high", "medium", "allow_tf32", "fp32_precision"])
def test_inside_matmuls_are_exact_and_afterwards_all_is_as_before(way: str) -> None:
    """However TF32 was switched on; torch raises when the two kinds of switch disagree."""
    if way == "fp32_precision" and not hasattr(torch.backends.cuda.matmul, way):
        pytest.skip("torch 2.8 has the old switch only")
    set_by(way)
    before = flags()
    with full_precision("cpu"):
        assert flags() in ([False, "ieee", "ieee"], [False, False])
    assert flags() == before


def test_settings_are_restored_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    before = flags()
    with pytest.raises(RuntimeError, match="inside"), full_precision("cpu"):
        raise RuntimeError("inside")
    assert flags() == before


def test_autocast_is_off_inside_and_on_again_after() -> None:
    rows = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision("cpu"):
            assert (rows @ rows).dtype == torch.float32
        assert (rows @ rows).dtype == torch.bfloat16
