"""What a loss holds: counted, not timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses import _tiles, infonce, sigmoid
from clipx.types import CandidateBlock

WIDTH = 16
LOSSES = [infonce.Config().build(), sigmoid.Config().build()]
names = pytest.mark.parametrize("loss", LOSSES, ids=["infonce", "sigmoid"])


def unit_rows(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(number, WIDTH, generator=generator), dim=-1)


class ColumnsPool(LocalPool):
    """Candidates are given: as if they had been gathered from many ranks, this one first."""

    def __init__(self, columns: Tensor, num_rows: int) -> None:
        self.columns, self.num_rows = columns, num_rows

    def share(self, *rows: Tensor) -> ColumnsPool:
        return self

    def visit(
        self,
        compute: Callable[[CandidateBlock], tuple[Tensor, ...]],
        reduce: tuple[str, ...],
        *extra: Tensor,
    ) -> tuple[Tensor, ...]:
        padded = [torch.cat([x, x.new_zeros(len(self.columns) - len(x))]) for x in extra]
        results = compute(CandidateBlock((self.columns, *padded), range(self.num_rows), 0))
        return tuple(result[: self.num_rows].clone() for result in results)


def measured(loss: Any, num_rows: int, num_columns: int) -> tuple[int, int]:
    """(peak bytes in forward and backward, bytes that live between the two)"""
    image, text = unit_rows(num_rows, 0).requires_grad_(), unit_rows(num_rows, 1).requires_grad_()
    scale, bias = torch.tensor(2.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    columns = torch.cat([text.detach(), unit_rows(num_columns - num_rows, 2)])
    pool = ColumnsPool(columns, num_rows)
    with LiveBytes() as live:
        out = loss(image, text, logit_scale=scale, logit_bias=bias, pool=pool)
        between = live.live
        out.loss.backward()
    return live.peak, between


@names
def test_between_forward_and_backward_rows_and_a_few_tiles_live(
    loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = 16 << 10
    monkeypatch.setattr(_tiles, "CPU_TILE_BYTES", tile)
    monkeypatch.setattr(_tiles, "TILE_ROWS", 64)
    for num_rows, num_columns in ((64, 64), (64, 1024), (256, 1024)):
        _, between = measured(loss, num_rows, num_columns)
        # Gathered columns, rows, scaled rows, products of positives, some numbers for each row.
        held = num_columns * WIDTH + num_rows * (4 * WIDTH + 8)
        assert between <= 4 * held + _tiles.KEPT_TILES * tile


@names
def test_peak_memory_does_not_grow_with_rows_times_columns(
    loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the rows' and columns' gradients there are a few tiles, whatever B and N are: here
    the matrix would be 64 and 256 times a tile."""
    tile = 16 << 10
    monkeypatch.setattr(_tiles, "CPU_TILE_BYTES", tile)
    monkeypatch.setattr(_tiles, "TILE_ROWS", 64)
    for num_rows, num_columns in ((256, 1024), (256, 4096), (512, 2048)):
        peak, _ = measured(loss, num_rows, num_columns)
        rows_and_columns = 4 * (WIDTH + 8) * (8 * num_rows + 2 * num_columns)
        assert peak <= rows_and_columns + (_tiles.KEPT_TILES + 6) * tile
        assert 4 * num_rows * num_columns >= 64 * tile


@names
def test_peak_memory_is_linear_in_the_size_of_a_tile(
    loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = []
    for tile in (16 << 10, 32 << 10, 64 << 10):
        monkeypatch.setattr(_tiles, "CPU_TILE_BYTES", tile)
        monkeypatch.setattr(_tiles, "TILE_ROWS", 64)
        peaks.append(measured(loss, 128, 2048)[0])
    once, twice = peaks[1] - peaks[0], peaks[2] - peaks[1]
    assert once > 0
    assert twice == pytest.approx(2 * once, rel=0.25)


def test_the_count_sees_a_loss_that_holds_the_matrix() -> None:
    """The ruler measures: a plain loss of 256 x 1,024 holds a megabyte at least."""

    def plain(image: Tensor, text: Tensor, *, pool: ColumnsPool, **_: Any) -> Any:
        logits = image @ pool.columns.T
        loss = F.cross_entropy(logits, torch.arange(len(image))) + 0 * text.sum()
        return type("Output", (), {"loss": loss})

    peak, between = measured(plain, 256, 1024)
    assert peak >= 2 * 4 * 256 * 1024
    assert between >= 4 * 256 * 1024
