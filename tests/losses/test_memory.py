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
from clipx.losses import _streaming, infonce, sigmoid
from clipx.types import Block

WIDTH = 16
LOSSES = [infonce.Config().build(), sigmoid.Config().build()]
names = pytest.mark.parametrize("loss", LOSSES, ids=["infonce", "sigmoid"])


def unit_rows(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(number, WIDTH, generator=generator), dim=-1)


class ColumnsPool(LocalPool):
    """Candidates are given: as if they had been gathered from many ranks, this one first."""

    def __init__(self, columns: Tensor) -> None:
        self.columns = columns

    def share(self, *rows: Tensor) -> ColumnsPool:
        return self

    def visit(
        self, act: Callable[[Block], tuple[Tensor, ...]], reduce: tuple[str, ...], *more: Tensor
    ) -> tuple[Tensor, ...]:
        own = len(more[0]) if more else 0
        self.own = own or self.own
        padded = [torch.cat([m, m.new_zeros(len(self.columns) - len(m))]) for m in more]
        found = act(Block((self.columns, *padded), range(self.own), 0))
        return tuple(f[: self.own].clone() for f in found)


def measured(loss: Any, num_rows: int, num_columns: int) -> tuple[int, int]:
    """(peak bytes in forward and backward, bytes saved for backward)"""
    image, text = unit_rows(num_rows, 0).requires_grad_(), unit_rows(num_rows, 1).requires_grad_()
    scale, bias = torch.tensor(2.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    pool = ColumnsPool(torch.cat([text.detach(), unit_rows(num_columns - num_rows, 2)]))
    pool.own = num_rows
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with LiveBytes() as bytes_, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = loss(image, text, logit_scale=scale, logit_bias=bias, pool=pool)
        out.loss.backward()
    return bytes_.peak, sum(saved)


@names
def test_what_backward_waits_for_is_one_gradient_for_each_input(loss: Any) -> None:
    for num_rows, num_columns in ((64, 64), (64, 1024), (256, 1024)):
        _, saved = measured(loss, num_rows, num_columns)
        assert saved <= 4 * (2 * num_rows * WIDTH + 2)


@names
def test_peak_memory_does_not_grow_with_rows_times_columns(
    loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the rows' and columns' gradients there are a few tiles, whatever B and N are: here
    the matrix would be 64 and 256 times a tile."""
    tile = 16 << 10
    monkeypatch.setattr(_streaming, "CPU_TILE_BYTES", tile)
    monkeypatch.setattr(_streaming, "TILE_ROWS", 64)
    for num_rows, num_columns in ((256, 1024), (256, 4096), (1024, 4096)):
        peak, _ = measured(loss, num_rows, num_columns)
        rows_and_columns = 4 * (WIDTH + 8) * (8 * num_rows + 2 * num_columns)
        assert peak <= rows_and_columns + (_streaming.KEPT_TILES + 6) * tile
        assert 4 * num_rows * num_columns >= 64 * tile


@names
def test_peak_memory_is_linear_in_the_size_of_a_tile(
    loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = []
    for tile in (16 << 10, 32 << 10, 64 << 10):
        monkeypatch.setattr(_streaming, "CPU_TILE_BYTES", tile)
        monkeypatch.setattr(_streaming, "TILE_ROWS", 64)
        peaks.append(measured(loss, 256, 4096)[0])
    once, twice = peaks[1] - peaks[0], peaks[2] - peaks[1]
    assert once > 0
    assert twice == pytest.approx(2 * once, rel=0.25)


def test_the_count_sees_a_loss_that_holds_the_matrix() -> None:
    """The ruler measures: a plain loss of 256 x 1,024 holds a megabyte at least."""

    def plain(image: Tensor, text: Tensor, *, pool: ColumnsPool, **_: Any) -> Any:
        logits = image @ pool.columns.T
        loss = F.cross_entropy(logits, torch.arange(len(image))) + 0 * text.sum()
        return type("Output", (), {"loss": loss})

    peak, saved = measured(plain, 256, 1024)
    assert peak >= 2 * 4 * 256 * 1024
    assert saved >= 4 * 256 * 1024
