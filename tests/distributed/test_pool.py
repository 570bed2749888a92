"""R ranks x B rows equal one process with R * B rows: value, gradients, logit_scale, logit_bias;
for each loss and each pool, under DDP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_checks import (
    AVERAGES,
    MORE_LOSSES,
    WITH_A_TEACHER,
    Case,
    Towers,
    one_process,
    oracle,
    peak_rows,
    train,
    uneven,
)
from ranks import RankGroup
from reference import accuracy
from torch import Tensor

from clipx.distributed import pool as pools
from clipx.distributed.pool import GlobalPool, LocalPool, PoolConfig, build_pool
from clipx.objectives.image_text import ImageText

KINDS = ["local", "gathered", "chunked", "ring"]
LOSSES = ["infonce", "sigmoid", "triplet"]


def assert_equals_one_process(group: RankGroup, case: Case) -> list[dict[str, Any]]:
    """The losses are the means over each rank's rows, and the gradients that DDP averaged are
    those of the global mean, on every rank."""
    rows, model, _ = oracle(case, group.world_size)
    ranks = group(train, case)
    means = rows.view(group.world_size, case.local_rows).mean(1)
    actual = torch.tensor([rank["loss"] for rank in ranks], dtype=torch.float64)
    torch.testing.assert_close(actual, means, rtol=1e-10, atol=1e-12)
    for rank in ranks:
        assert rank["gradients"].keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            gradient = torch.from_numpy(np.asarray(rank["gradients"][name]))
            # float64 sums in another order; the gradients are of size 1e-3 to 10
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-12)
    return ranks


@pytest.mark.parametrize("scale", [1 / 0.07, 100.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_with_each_pool_equals_one_process(
    group: RankGroup, loss: str, kind: str, scale: float
) -> None:
    """Three rows on each rank, which a chunk of two does not divide."""
    assert_equals_one_process(group, Case(loss, kind, scale=scale))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_one_row_on_each_rank(group: RankGroup, loss: str, kind: str) -> None:
    assert_equals_one_process(group, Case(loss, kind, local_rows=1))


@pytest.mark.parametrize("queue", [0, 5])
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("loss", MORE_LOSSES)
def test_more_losses_with_each_pool_equal_one_process(
    group: RankGroup, loss: str, kind: str, queue: int
) -> None:
    """These are checked in one process by tests/losses; here with ids and past rows."""
    assert_equals_one_objective(
        group, Case(loss, kind, local_rows=4, kinds=1, queue=queue, steps=3 if queue else 1)
    )


@pytest.mark.parametrize("loss", ["nt_xent", "triplet_hardest", "hard_negative", "multi_positive"])
def test_with_the_local_pool_each_rank_has_the_loss_of_its_own_rows(
    group: RankGroup, loss: str
) -> None:
    """Also counts of candidates and of positives are those of the rank."""
    size = group.world_size
    case = Case(loss, "local", local_rows=4, kinds=1)
    image, text, ids = case.batch(0, size)
    assert ids is not None
    towers = Towers.of(case)
    objective = case.build_objective(towers)
    ranks = group(train, case)
    total = torch.zeros((), dtype=torch.float64)
    for number, rank in enumerate(ranks):
        rows = slice(number, None, size)
        views = {"image": image[rows], "text": text[rows], "ids": ids[rows]}
        own = objective.loss(objective.embed(views), LocalPool()).loss
        assert rank["loss"] == pytest.approx(own.item(), rel=1e-10, abs=1e-12)
        total = total + own / size
    total.backward()
    for name, parameter in towers.named_parameters():
        gradient = torch.from_numpy(np.asarray(ranks[0]["gradients"][name]))
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("loss", WITH_A_TEACHER)
def test_losses_with_a_teacher_equal_one_process(group: RankGroup, loss: str, kind: str) -> None:
    assert_equals_one_objective(group, Case(loss, kind, local_rows=4))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_averages_of_normalizers_equal_those_of_one_process(group: RankGroup, kind: str) -> None:
    """Of samples that come again, also twice in a batch, and resumed in the middle."""
    case = Case(AVERAGES, kind, local_rows=4, kinds=1, steps=5)
    objective = case.build_objective(Towers.of(case))
    ranks = assert_equals_one_objective(group, case, objective)
    (expected,) = objective.own_state().values()
    assert expected["log_averages"].isfinite().any()
    for rank in ranks:
        assert np.array_equal(rank["state"]["log_averages"], expected["log_averages"].numpy())


def assert_equals_one_objective(
    group: RankGroup, case: Case, objective: ImageText | None = None
) -> list[dict[str, Any]]:
    expected, model = one_process(case, group.world_size, objective)
    ranks = group(train, case)
    # A term may be divided by a count over all ranks, so that only the mean is comparable.
    actual = sum(rank["loss"] for rank in ranks) / len(ranks)
    assert actual == pytest.approx(expected, rel=1e-10, abs=1e-12)
    for rank in ranks:
        for name, parameter in model.named_parameters():
            gradient = torch.from_numpy(np.asarray(rank["gradients"][name]))
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-12)
    return ranks


@pytest.mark.parametrize("kind", KINDS[1:])
def test_ranks_with_different_rows_are_reported_and_none_is_aborted(
    group: RankGroup, kind: str
) -> None:
    if group.world_size == 1:
        pytest.skip("one rank is even")
    counts = ", ".join(["3"] * (group.world_size - 1) + ["4"])
    for message in group(uneven, (kind, "rows")):
        assert f"in rank order: {counts}; give every rank a local batch" in message
    for what in ("width", "ids"):
        assert all(
            "different widths, or ids on" in message for message in group(uneven, (kind, what))
        )


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    case=st.builds(
        Case,
        loss=st.sampled_from(["infonce", "sigmoid"]),
        pool=st.sampled_from(KINDS),
        local_rows=st.integers(1, 6),
        scale=st.sampled_from([1.0, 1 / 0.07, 100.0]),
        chunk=st.integers(1, 7),
        kinds=st.integers(0, 2),
        label_smoothing=st.sampled_from([0.0, 0.1]),
        queue=st.sampled_from([0, 1, 5, 40]),
        steps=st.integers(1, 4),
        seed=st.integers(0, 100),
    )
)
def test_any_shape_and_option_equals_one_process(group: RankGroup, case: Case) -> None:
    """With masks by id across ranks, label smoothing, past rows, and a pool that was stopped and
    taken up again from its state in the middle."""
    assert_equals_one_process(group, case)


@pytest.mark.parametrize("kind", ["gathered", "chunked", "ring"])
def test_accuracy_over_ranks_is_that_of_the_full_batch(group: RankGroup, kind: str) -> None:
    """Fails where a rank looks for its own rows at another place among the candidates."""
    case = Case(pool=kind, local_rows=5)
    with torch.no_grad():
        image, text = Towers.of(case)(*case.batch(0, group.world_size)[:2])
    actual = [rank["accuracy"] for rank in group(train, case)]
    assert sum(actual) / len(actual) == pytest.approx(accuracy(image, text), abs=1e-6)


def test_only_the_gathered_pool_holds_all_rows(group: RankGroup) -> None:
    """In units of a rank's rows, as docs/distributed.md has it: texts and gradients, of all ranks,
    of 8 / 64 of them, or 7 blocks in a ring of any size. gloo copies gradients as it adds them up.
    Own rows and what comes home are up to three more."""
    size = group.world_size
    assert 2 * size <= max(group(peak_rows, "gathered")) <= 3 * size + 1
    assert max(group(peak_rows, "chunked")) <= 3 * size * 8 / 64 + 3
    assert max(group(peak_rows, "ring")) <= 7


def test_the_queue_is_the_same_on_all_ranks_and_holds_the_newest_rows(group: RankGroup) -> None:
    case = Case(queue=2 * group.world_size + 3, steps=3, kinds=1)
    ranks = group(train, case)
    _, _, past = oracle(replace(case, steps=4), group.world_size)
    assert past is not None
    for rank in ranks:
        for name, rows in zip(("image", "text", "ids"), past, strict=True):
            assert rows is not None
            actual = torch.from_numpy(rank["state"][name])
            torch.testing.assert_close(actual, rows, rtol=1e-12, atol=1e-14)


def held(pool: pools.Pool, rows: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []

    def act(block: pools.CandidateBlock) -> tuple[Tensor, ...]:
        seen.append(block.rows[0])
        return ()

    assert pool.share(rows).visit(act, ()) == ()
    return seen


def test_one_process_needs_no_group() -> None:
    rows = torch.ones(2, 3)
    for kind in ("auto", "local", "gathered", "chunked", "ring"):
        pool = build_pool(PoolConfig(kind=kind), world_size=1)
        assert isinstance(pool, LocalPool)
        assert held(pool, rows) == [rows]
        assert pool.gather(rows) is not None


def test_the_config_names_the_pool() -> None:
    assert isinstance(build_pool(PoolConfig(kind="local"), world_size=2), LocalPool)
    for kind in ("auto", "gathered", "chunked", "ring"):
        pool = build_pool(PoolConfig(kind=kind, chunk=3), world_size=2)
        assert isinstance(pool, GlobalPool)
        assert (pool.kind, pool.chunk) == (kind, 3)
