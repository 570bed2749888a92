"""The norm of all gradients, and clipping, in one process. tests/distributed/test_sharded_optim.py
has shards."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clipx.training.gradients import clip_gradients

SHAPES = [(), (1,), (7,), (3, 5), (4095,), (64, 64), (3, 1000, 5), (0,)]


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for shape in SHAPES:
        parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))
        parameter.grad = torch.randn(shape, generator=generator, dtype=dtype)
        out.append(parameter)
    return out


def exact(gradients: list[Tensor]) -> float:
    return math.sqrt(math.fsum(v * v for g in gradients for v in g.double().flatten().tolist()))


def gradients(of: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in of if p.grad is not None]


@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
def test_the_norm_is_that_of_all_numbers_in_a_row(seed: int, dtype: torch.dtype) -> None:
    mine = parameters(seed, dtype)
    norm = clip_gradients(mine, None)
    assert norm.dtype == dtype
    # the last digit of the dtype, after rows of 4,096 were summed in it
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert norm.item() == pytest.approx(exact(gradients(mine)), rel=tolerance)


def test_millions_of_numbers_lose_no_precision() -> None:
    """A float32 sum in one go is off by 1e-4 here."""
    table = nn.Parameter(torch.zeros(20_000, 192))
    table.grad = torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert clip_gradients([table], None).item() == pytest.approx(
        table.grad.double().norm().item(), rel=1e-7
    )


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-22, 1e-12, 1e19, 2e19, 1e30])
def test_squares_neither_overflow_nor_vanish(size: float) -> None:
    mine = parameters()
    for gradient in gradients(mine):
        gradient *= size
    expected = exact(gradients(mine))
    assert clip_gradients(mine, None).item() == pytest.approx(expected, rel=1e-5)
    clip_gradients(mine, size)
    assert exact(gradients(mine)) == pytest.approx(size, rel=1e-4)


def test_one_overflowing_number_among_millions_of_vanishing_ones() -> None:
    table = nn.Parameter(torch.zeros(300, 4096))
    table.grad = torch.full_like(table, 1e-30)
    table.grad[7, 7] = 3e19
    assert clip_gradients([table], None).item() == pytest.approx(3e19, rel=1e-6)


def test_a_device_sums_in_float64() -> None:
    """The call that is made there, on a CPU."""
    norms = torch._foreach_norm([torch.full((9,), 2e19)], 2, dtype=torch.float64)
    assert norms[0].item() == pytest.approx(6e19, rel=1e-6)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e6])
def test_clipping_equals_that_of_torch(limit: float) -> None:
    mine, theirs = parameters(), parameters()
    norm = clip_gradients(mine, limit)
    expected = nn.utils.clip_grad_norm_(theirs, limit)
    torch.testing.assert_close(norm, expected, rtol=1e-5, atol=0)
    for a, b in zip(gradients(mine), gradients(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)  # torch adds 1e-6 to the norm


def test_gradients_above_the_limit_have_it_as_their_norm_and_others_keep_their_bits() -> None:
    mine = parameters()
    size = exact(gradients(mine))
    clip_gradients(mine, 0.25)
    assert exact(gradients(mine)) == pytest.approx(0.25, rel=1e-6)
    for limit in (None, 2 * size):
        mine = parameters()
        assert clip_gradients(mine, limit).item() == pytest.approx(size, rel=1e-6)
        for a, b in zip(gradients(mine), gradients(parameters()), strict=True):
            assert torch.equal(a, b)


def test_convolutions_in_channels_last_memory_count_like_others() -> None:
    kernel = nn.Parameter(torch.zeros(8, 3, 5, 5))
    kernel.grad = torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last)
    before = kernel.grad.clone()
    assert clip_gradients([kernel], None).item() == pytest.approx(exact([before]), rel=1e-6)
    clip_gradients([kernel], 1e-2)
    torch.testing.assert_close(kernel.grad, before * (1e-2 / exact([before])))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_number_that_is_not_finite_makes_a_norm_that_is_not(bad: float) -> None:
    mine = parameters()
    gradients(mine)[3][0, 0] = bad
    assert not clip_gradients(mine, None).isfinite()


def test_no_gradient_at_all_is_a_norm_of_0() -> None:
    idle = nn.Parameter(torch.ones(3))
    assert clip_gradients([idle], 1.0).item() == 0
    assert clip_gradients([], None).item() == 0
    idle.grad = torch.zeros(3)
    assert clip_gradients([idle], 1.0).item() == 0
    assert torch.equal(idle.grad, torch.zeros(3))
