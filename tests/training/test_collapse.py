"""Whether features collapse: figures and alarms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.training.collapse import alarms, spread

GATHER = LocalPool().gather


def test_rows_in_all_directions_are_spread_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1024, 16, generator=generator)
    ids = torch.arange(1024)
    figures = spread({"image": rows, "text": -rows, "ids": ids}, (("image", "text"),), GATHER, 1)
    assert figures["features/image/deviation"] == pytest.approx(1, abs=0.02)
    assert figures["features/text/effective_rank"] == pytest.approx(16, abs=0.1)
    assert figures["features/image/uniformity"] < -2.5
    assert figures["features/image-text/alignment"] == pytest.approx(4), "opposite points"
    assert not any("ids" in key for key in figures)
    assert alarms(figures) == []


@pytest.mark.parametrize("dimensions", [0, 1])
def test_rows_of_one_point_or_one_direction_raise_an_alarm(dimensions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(1, 16, generator=generator)
    rows = point + torch.randn(64, dimensions, generator=generator) @ torch.eye(16)[:dimensions]
    (message,) = alarms(spread({"image": rows}, (), GATHER, 1))
    assert "image features collapse: deviation" in message
    assert "effective rank 1." in message


def test_only_the_first_rows_count_on_any_number_of_ranks() -> None:
    """Ranks have a batch's rows in turns. Here a gather puts them together again."""
    rows = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
    whole = spread({"image": rows}, (), GATHER, 1)
    ranks = [rows[rank::4] for rank in range(4)]

    def gather(part: torch.Tensor) -> torch.Tensor:
        return torch.stack([rank[: len(part)] for rank in ranks], 1).flatten(0, 1)

    assert spread({"image": ranks[2]}, (), gather, 4) == whole
    first = F.normalize(rows[:1024], dim=-1)
    deviation = first.std(0, correction=0).mean() * math.sqrt(8)
    assert whole["features/image/deviation"] == pytest.approx(deviation.item())


def test_features_that_are_not_finite_have_no_figures() -> None:
    rows = torch.randn(64, 8)
    broken = rows.index_fill(0, torch.tensor([3]), torch.nan)
    figures = spread({"image": broken, "text": rows}, (("image", "text"),), GATHER, 1)
    assert {key.split("/")[1] for key in figures} == {"text"}


def test_a_few_rows_have_no_figures() -> None:
    """They have a low rank in any space."""
    assert spread({"image": torch.randn(31, 4)}, (), GATHER, 1) == {}
