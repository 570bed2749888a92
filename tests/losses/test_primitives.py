"""Sums and maxima over a pool equal those of the whole matrix, with their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plain_losses
import pytest
import torch
from blocks import BlockPool
from cases import EXACT, Inputs, inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from live_bytes import LiveBytes
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses import _streaming
from clipx.losses.infonce import InfoNCE
from clipx.losses.primitives import nearest_candidates, pairwise_logsumexp, pairwise_sum
from clipx.losses.sigmoid import Sigmoid
from clipx.types import Pool

POOLS = st.one_of(st.just(LocalPool()), st.builds(BlockPool, st.integers(1, 5), st.integers(0, 9)))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles for a dozen rows."""
    monkeypatch.setattr(_streaming, "TILE_ROWS", 3)
    monkeypatch.setattr(_streaming, "CPU_TILE_BYTES", 8 * 3 * 4)


def counts(ids: Tensor | None, size: int, *, own: bool) -> Tensor:
    """(B, B) bool: which pairs count."""
    diagonal = torch.eye(size, dtype=torch.bool)
    out = torch.ones(size, size, dtype=torch.bool)
    if ids is not None:
        out &= ~(ids[:, None] == ids[None]).any(-1)
    return (out | diagonal) if own else (out & ~diagonal)


def dense(given: Inputs, *, own: bool) -> tuple[Tensor, Tensor]:
    """(B, B) logits without bias, and which count."""
    logits = given.logit_scale.exp() * given.image @ given.text.T
    return logits, counts(given.ids, len(logits), own=own)


def gradients(value: Tensor, given: Inputs, *, bias: bool = False) -> list[Tensor]:
    leaves = given.leaves(bias=bias)
    found = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def weighted(values: Tensor, seed: int) -> Tensor:
    """A sum with weights of both signs, so that no gradient is checked for one direction only.
    Values that are -inf have none."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(values.shape, generator=generator, dtype=values.dtype)
    return (weights * values.masked_fill(values == -torch.inf, 0)).sum()


@settings(max_examples=60, deadline=None)
@given(given=inputs(), pool=POOLS, own=st.booleans())
def test_logsumexp_of_both_directions(given: Inputs, pool: Pool, own: bool) -> None:
    scale = given.logit_scale.exp()
    found = pairwise_logsumexp(given.image, given.text, pool, scale=scale, ids=given.ids, own=own)
    logits, count = dense(given, own=own)
    logits = logits.masked_fill(~count, -torch.inf)
    expected = logits.logsumexp(1), logits.logsumexp(0)
    assert_equal(list(found), list(expected))
    values = [weighted(one, 0) + weighted(other, 1) for one, other in (found, expected)]
    assert_equal(gradients(values[0], given), gradients(values[1], given))


@pytest.mark.parametrize(
    "function", [F.softplus, lambda z: F.relu(z + 0.3).square(), torch.tanh], ids=str
)
@settings(max_examples=30, deadline=None)
@given(given=inputs(), pool=POOLS, own=st.booleans())
def test_sum_of_a_function_of_pairs(
    function: Callable[[Tensor], Tensor], given: Inputs, pool: Pool, own: bool
) -> None:
    scale, bias = given.logit_scale.exp(), given.logit_bias
    found = pairwise_sum(
        function, given.image, given.text, pool, scale=scale, bias=bias, ids=given.ids, own=own
    )
    logits, count = dense(given, own=own)
    expected = (function(logits + bias) * count).sum(1)
    assert_equal([found], [expected])
    sums = [gradients(weighted(values, 0), given, bias=True) for values in (found, expected)]
    assert_equal(*sums)


@settings(max_examples=60, deadline=None)
@given(given=inputs(), pool=POOLS, k=st.integers(1, 4))
def test_nearest_candidates(given: Inputs, pool: Pool, k: int) -> None:
    found = nearest_candidates(given.image, given.text, pool, k, ids=given.ids)
    similarity = given.image @ given.text.T
    count = counts(given.ids, len(similarity), own=False)
    padded = F.pad(similarity.masked_fill(~count, -torch.inf), (0, k), value=-torch.inf)
    expected = padded.topk(k, dim=1).values
    assert_equal([found], [expected])
    assert_equal(
        gradients(weighted(found, 0) + 0 * given.logit_scale, given),
        gradients(weighted(expected, 0) + 0 * given.logit_scale, given),
    )


@settings(max_examples=30, deadline=None)
@given(given=inputs(), pool=POOLS)
def test_the_losses_of_clip_and_siglip_in_a_few_lines(given: Inputs, pool: Pool) -> None:
    """Value and gradients are those of the fused ones."""
    settings: dict[str, Any] = {"logit_scale": given.logit_scale, "logit_bias": given.logit_bias}
    settings |= {"pool": pool, "ids": given.ids}
    for plain, fused in ((plain_losses.infonce, InfoNCE()), (plain_losses.sigmoid, Sigmoid())):
        values = [loss(given.image, given.text, **settings).loss for loss in (plain, fused)]
        torch.testing.assert_close(*values, **EXACT)
        assert_equal(*(gradients(value, given, bias=True) for value in values))


def test_logits_of_a_hundred_are_finite_in_float32() -> None:
    given = Inputs.draw(6, scale=100.0, dtype=torch.float32, noise=3.0)
    row, column = pairwise_logsumexp(given.image, given.text, LocalPool(), scale=100.0)
    expected = 100 * given.image.double() @ given.text.double().T
    # float32 products of 8 terms near 100: some 1e-5
    torch.testing.assert_close(row.double(), expected.logsumexp(1), rtol=0, atol=1e-4)
    torch.testing.assert_close(column.double(), expected.logsumexp(0), rtol=0, atol=1e-4)


def test_bfloat16_rows_are_summed_in_float32() -> None:
    given = Inputs.draw(6, dtype=torch.bfloat16)
    row, _ = pairwise_logsumexp(given.image, given.text, LocalPool(), scale=50.0)
    assert row.dtype == torch.float32
    expected = (50 * given.image.float() @ given.text.float().T).logsumexp(1)
    torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5)
    row.sum().backward()
    assert given.image.grad is not None
    assert given.image.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["logsumexp", "sum", "nearest"])
def test_the_matrix_is_never_held(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_streaming, "TILE_ROWS", 64)
    monkeypatch.setattr(_streaming, "CPU_TILE_BYTES", 64 * 64 * 4)
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(1024, 16, generator=generator), dim=-1).requires_grad_()
        for _ in range(2)
    )
    with LiveBytes() as live:
        if kind == "logsumexp":
            row, column = pairwise_logsumexp(image, text, LocalPool(), scale=10.0)
            value = row.sum() + column.sum()
        elif kind == "sum":
            value = pairwise_sum(F.softplus, image, text, LocalPool(), scale=10.0).sum()
        else:
            value = nearest_candidates(image, text, LocalPool(), 3).sum()
        value.backward()
    rows, tile = image.numel() * 4, 64 * 64 * 4
    assert live.peak < 12 * rows + 16 * tile < 1024 * 1024 * 4 / 3
