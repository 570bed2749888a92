"""R ranks x B rows equal one process with R * B rows: value, gradients, logit_scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_checks import LOCAL_ROWS, Towers, global_batch
from reference import accuracy, infonce

from clipx.distributed.pool import LocalPool, build_pool

Ranks = list[dict[str, Any]]
SCALES = [1 / 0.07, 100.0]


@pytest.mark.parametrize("scale", SCALES)
def test_mean_over_ranks_of_the_loss_equals_the_full_batch_reference(
    ranks: Ranks, scale: float
) -> None:
    with torch.no_grad():
        expected = infonce(*Towers(scale)(*global_batch(len(ranks))))
    losses = [rank["infonce"][scale]["loss"] for rank in ranks]
    assert sum(losses) / len(ranks) == pytest.approx(expected.item(), rel=1e-10)
    assert len(set(losses)) == len(ranks), "each rank's loss is that of its own rows"


@pytest.mark.parametrize("scale", SCALES)
def test_infonce_gradient_equals_single_process_when_gathered(ranks: Ranks, scale: float) -> None:
    """The gradients that DDP averaged, of both towers and of logit_scale, on every rank."""
    model = Towers(scale)
    infonce(*model(*global_batch(len(ranks)))).backward()
    for rank in ranks:
        gradients = rank["infonce"][scale]["gradients"]
        assert gradients.keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            found = torch.tensor(gradients[name], dtype=torch.float64)
            # float64 sums in another order; the gradients are of size 1e-3 to 1
            torch.testing.assert_close(found, parameter.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("scale", SCALES)
def test_accuracy_over_ranks_is_that_of_the_full_batch(ranks: Ranks, scale: float) -> None:
    """Fails where a rank looks for its own rows at another place among the candidates."""
    with torch.no_grad():
        image, text, _ = Towers(scale)(*global_batch(len(ranks)))
    mean = sum(rank["infonce"][scale]["accuracy"] for rank in ranks) / len(ranks)
    assert mean == pytest.approx(accuracy(image, text), abs=1e-6)


def test_offset_is_where_a_ranks_rows_begin(ranks: Ranks) -> None:
    found = [rank["infonce"][100.0]["offset"] for rank in ranks]
    assert found == [LOCAL_ROWS * rank for rank in range(len(ranks))]


def test_one_process_needs_no_group() -> None:
    pool = build_pool(1)
    rows = torch.ones(2, 3)
    assert isinstance(pool, LocalPool)
    assert pool.gather(rows) is rows
    assert pool.offset(2) == 0
