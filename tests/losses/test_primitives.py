"""Sums and maxima over a pool equal those of the whole matrix, with their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from clipx.losses import _tiles
from clipx.losses.primitives import (
    nearest_candidates,
    pairwise_expectation,
    pairwise_logsumexp,
    pairwise_mean,
    pairwise_sum,
)
from clipx.types import Pool

OWN = st.sampled_from(["counts", "left out"])
POOLS = st.one_of(st.just(LocalPool()), st.builds(BlockPool, st.integers(1, 5), st.integers(0, 9)))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles for a dozen rows."""
    monkeypatch.setattr(_tiles, "TILE_ROWS", 3)
    monkeypatch.setattr(_tiles, "CPU_TILE_BYTES", 8 * 3 * 4)


def counts(ids: Tensor | None, other_ids: Tensor | None, shape: torch.Size, own: str) -> Tensor:
    """(B, N) bool: pairs that count."""
    out = torch.ones(shape, dtype=torch.bool)
    if ids is not None and other_ids is not None:
        out &= ~(ids[:, None] == other_ids[None]).any(-1)
    diagonal = torch.eye(*shape, dtype=torch.bool)
    if own == "absent":
        return out
    return (out | diagonal) if own == "counts" else (out & ~diagonal)


def dense(given: Inputs, own: str) -> tuple[Tensor, Tensor]:
    """(B, B) logits without bias, and which count."""
    logits = given.logit_scale.exp() * given.image @ given.text.T
    return logits, counts(given.ids, given.ids, logits.shape, own)


def dense_past(given: Inputs) -> list[tuple[Tensor, Tensor]]:
    """The same for images against past texts, and for texts against past images: (B, Q)."""
    if given.past is None:
        return []
    past_image, past_text, past_ids = given.past
    out = []
    for rows, columns in ((given.image, past_text), (given.text, past_image)):
        logits = given.logit_scale.exp() * rows @ columns.T
        out.append((logits, counts(given.ids, past_ids, logits.shape, "absent")))
    return out


def gradients(value: Tensor, given: Inputs, *, bias: bool = False) -> list[Tensor]:
    leaves = given.leaves(bias=bias)
    actual = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(actual, leaves, strict=True)]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def weighted(values: Tensor, seed: int) -> Tensor:
    """A sum with weights of both signs, so that no gradient is checked for one direction only.
    Values that are -inf have none."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(values.shape, generator=generator, dtype=values.dtype)
    return (weights * values.masked_fill(values == -torch.inf, 0)).sum()


def positive_weights(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, generator=generator, dtype=torch.float64) + 0.5


@settings(max_examples=50, deadline=None)
@given(given=inputs(), pool=POOLS, own=OWN, weigh_rows=st.booleans(), weigh_columns=st.booleans())
def test_logsumexp_of_both_directions(
    given: Inputs, pool: Pool, own: str, weigh_rows: bool, weigh_columns: bool
) -> None:
    size = len(given.image)
    row_weights = positive_weights(size, 0) if weigh_rows else None
    column_weights = positive_weights(size, 1) if weigh_columns else None
    out = pairwise_logsumexp(
        given.image,
        given.text,
        pool,
        scale=given.logit_scale.exp(),
        ids=given.ids,
        own=own,
        row_weights=row_weights,
        column_weights=column_weights,
        negatives=given.negatives,
    )
    logits, count = dense(given, own)
    logits = logits.masked_fill(~count, -torch.inf)
    sides = [
        logits + (0 if column_weights is None else column_weights.log()),
        logits.T + (0 if row_weights is None else row_weights.log()),
    ]
    for number, (past_logits, past_count) in enumerate(dense_past(given)):
        past_logits = past_logits.masked_fill(~past_count, -torch.inf)
        sides[number] = torch.cat([sides[number], past_logits], 1)
    expected = [side.logsumexp(1) for side in sides]
    assert_equal([out.rows, out.columns], expected)
    values = [
        weighted(one, 0) + weighted(other, 1) for one, other in ((out.rows, out.columns), expected)
    ]
    assert_equal(gradients(values[0], given), gradients(values[1], given))


@pytest.mark.parametrize(
    "function",
    [F.softplus, lambda z: F.relu(z + 0.3).square(), torch.tanh],
    ids=["softplus", "squared_hinge", "tanh"],
)
@settings(max_examples=25, deadline=None)
@given(given=inputs(), pool=POOLS, own=OWN)
def test_sum_of_a_function_of_pairs(
    function: Callable[[Tensor], Tensor], given: Inputs, pool: Pool, own: str
) -> None:
    options: dict[str, Any] = {
        "scale": given.logit_scale.exp(),
        "bias": given.logit_bias,
        "ids": given.ids,
        "own": own,
        "negatives": given.negatives,
    }
    out = pairwise_sum(function, given.image, given.text, pool, **options)
    logits, count = dense(given, own)
    expected = (function(logits + given.logit_bias) * count).sum(1)
    for past_logits, past_count in dense_past(given):
        expected = expected + (function(past_logits + given.logit_bias) * past_count).sum(1)
    assert_equal([out.rows], [expected])
    sums = [gradients(weighted(values, 0), given, bias=True) for values in (out.rows, expected)]
    assert_equal(*sums)

    mean = pairwise_mean(function, given.image, given.text, pool, **options)
    assert_equal([mean.mean], [expected.mean()])
    assert mean.own_is_nearest.tolist() == out.own_is_nearest.tolist()
    assert_equal(*(gradients(3 * one, given, bias=True) for one in (mean.mean, expected.mean())))
    with torch.no_grad():
        without = pairwise_mean(function, given.image, given.text, pool, **options).mean
    assert_equal([without], [expected.mean()])


@settings(max_examples=25, deadline=None)
@given(given=inputs(), pool=POOLS)
def test_an_own_column_is_nearest_if_it_beats_all_others(given: Inputs, pool: Pool) -> None:
    options: dict[str, Any] = {"ids": given.ids, "negatives": given.negatives}
    lse = pairwise_logsumexp(given.image, given.text, pool, **options)
    total = pairwise_sum(torch.tanh, given.image, given.text, pool, **options)
    similarity = given.image @ given.text.T
    count = counts(given.ids, given.ids, similarity.shape, "left out")
    others = [similarity.masked_fill(~count, -torch.inf)]
    if given.past is not None:
        past = given.image @ given.past[1].T
        past_count = counts(given.ids, given.past[2], past.shape, "absent")
        others.append(past.masked_fill(~past_count, -torch.inf))
    expected = similarity.diagonal() > torch.cat(others, 1).amax(1)
    assert lse.own_is_nearest.tolist() == expected.tolist()
    assert total.own_is_nearest.tolist() == expected.tolist()


@settings(max_examples=30, deadline=None)
@given(given=inputs(), pool=POOLS, k=st.integers(1, 4))
def test_nearest_candidates(given: Inputs, pool: Pool, k: int) -> None:
    actual = nearest_candidates(
        given.image, given.text, pool, k, ids=given.ids, negatives=given.negatives
    )
    similarity = given.image @ given.text.T
    count = counts(given.ids, given.ids, similarity.shape, "left out")
    if given.past is not None:
        _, past_text, past_ids = given.past
        of_past = given.image @ past_text.T
        count = torch.cat([count, counts(given.ids, past_ids, of_past.shape, "absent")], 1)
        similarity = torch.cat([similarity, of_past], 1)
    padded = F.pad(similarity.masked_fill(~count, -torch.inf), (0, k), value=-torch.inf)
    expected = padded.topk(k, dim=1).values
    assert_equal([actual], [expected])
    assert_equal(
        gradients(weighted(actual, 0) + 0 * given.logit_scale, given),
        gradients(weighted(expected, 0) + 0 * given.logit_scale, given),
    )


@pytest.mark.parametrize("kind", ["mixed", "all near 100", "all near -100"])
def test_logits_of_a_hundred_neither_overflow_nor_vanish_in_float32(kind: str) -> None:
    image, text, _ = Inputs.draw(6, scale=100.0, dtype=torch.float32, noise=3.0).leaves(bias=False)
    if kind != "mixed":
        # float32 keeps two digits of exp(-100), and none of exp(-104).
        axis = torch.eye(image.shape[1])[0]
        image, text = (F.normalize(axis + 0.05 * rows, dim=-1) for rows in (image, text))
        text = -text if kind == "all near -100" else text
    row, column, *_ = pairwise_logsumexp(image, text, LocalPool(), scale=100.0)
    expected = 100 * image.double() @ text.double().T
    # float32 products of 8 terms near 100: some 1e-5
    torch.testing.assert_close(row.double(), expected.logsumexp(1), rtol=0, atol=1e-4)
    torch.testing.assert_close(column.double(), expected.logsumexp(0), rtol=0, atol=1e-4)


def test_bfloat16_rows_are_summed_in_float32() -> None:
    given = Inputs.draw(6, dtype=torch.bfloat16)
    row, *_ = pairwise_logsumexp(given.image, given.text, LocalPool(), scale=50.0)
    assert row.dtype == torch.float32
    expected = (50 * given.image.float() @ given.text.float().T).logsumexp(1)
    torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5)
    row.sum().backward()
    assert given.image.grad is not None
    assert given.image.grad.dtype == torch.bfloat16


@settings(max_examples=30, deadline=None)
@given(given=inputs(), pool=POOLS, width=st.integers(1, 9))
def test_expectation_under_a_teacher(given: Inputs, pool: Pool, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    teacher = [
        torch.randn(len(given.image), width, generator=generator, dtype=torch.float64)
        for _ in range(2)
    ]
    out = pairwise_expectation(
        given.image,
        given.text,
        *teacher,
        pairwise_logsumexp(*teacher, pool, scale=2.0),
        pool,
        scale=given.logit_scale.exp(),
        teacher_scale=2.0,
    )
    logits = given.logit_scale.exp() * given.image @ given.text.T
    of_teacher = 2 * teacher[0] @ teacher[1].T
    expected = []
    for dim in (1, 0):
        expected.append((of_teacher.softmax(dim) * (logits - of_teacher)).sum(dim))
    assert_equal([x.detach() for x in out], [x.detach() for x in expected])
    total = weighted(out[0], 0) + weighted(out[1], 1)
    by_hand = weighted(expected[0], 0) + weighted(expected[1], 1)
    assert_equal(gradients(total, given), gradients(by_hand, given))


@pytest.mark.parametrize("kind", ["logsumexp", "sum", "nearest", "expectation"])
def test_the_matrix_is_never_held(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "TILE_ROWS", 32)
    monkeypatch.setattr(_tiles, "CPU_TILE_BYTES", 32 * 32 * 4)
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(512, 8, generator=generator), dim=-1).requires_grad_()
        for _ in range(2)
    )
    with LiveBytes() as live:
        if kind == "logsumexp":
            lse = pairwise_logsumexp(image, text, LocalPool(), scale=10.0)
            value = lse.rows.sum() + lse.columns.sum()
        elif kind == "sum":
            value = pairwise_sum(F.softplus, image, text, LocalPool(), scale=10.0).rows.sum()
        elif kind == "expectation":
            lse = pairwise_logsumexp(text, image, LocalPool())
            out = pairwise_expectation(image, text, text, image, lse, LocalPool(), scale=10.0)
            value = out[0].sum() + out[1].sum()
        else:
            value = nearest_candidates(image, text, LocalPool(), 3).sum()
        value.backward()
    rows, tile = image.numel() * 4, 32 * 32 * 4
    assert live.peak < 12 * rows + 16 * tile < 512 * 512 * 4 / 3
