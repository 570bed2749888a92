"""Peak memory of one loss, on rank 0 of N / 1,024: clipx's or the dense one of `loss_dense`.

This rank's rows and those of all ranks lie ready, as after a gather, for both alike. Counted is
what a forward and backward pass takes beyond them and their gradients. As a program it measures one
of the two in a process of its own and prints the bytes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loss_contestants import LOCAL_ROWS, WIDTH, status
from loss_dense import (
    BETA,
    DENSE,
    EPSILON,
    GAMMA,
    MARGIN,
    TAU_PLUS,
    TEACHER_SCALE,
    WIDTHS,
    Rows,
)
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses import (
    hard_negative,
    infonce,
    margin,
    matryoshka,
    multi_positive,
    nt_xent,
    sigmoid,
    triplet,
)
from clipx.losses.distillation import similarity_kl
from clipx.losses.global_normalizer import GlobalNormalizer
from clipx.types import CandidateBlock, Candidates

AVERAGES = GlobalNormalizer(gamma=GAMMA, epsilon=EPSILON)
LOSSES: dict[str, Any] = {
    "infonce": infonce.Config(),
    "sigmoid": sigmoid.Config(),
    "nt_xent": nt_xent.Config(),
    "triplet hardest": triplet.Config(margin=MARGIN),
    "triplet all": triplet.Config(margin=MARGIN, mining="all"),
    "margin all": margin.Config(margin=MARGIN, pairs="all"),
    "hard_negative": hard_negative.Config(beta=BETA, tau_plus=TAU_PLUS),
    "multi_positive": multi_positive.Config(image_image=1.0),
    "matryoshka": matryoshka.Config(widths=WIDTHS, loss=infonce.Config()),
    "global_normalizer": infonce.Config(global_normalizer=AVERAGES),
}


class ReadyPool(LocalPool):
    """A gathered pool whose gather is done: rows of other ranks lie ready for each shape."""

    def __init__(self, num_columns: int) -> None:
        super().__init__()
        self.num_columns = num_columns
        self._others: dict[tuple[Any, ...], Tensor] = {}

    def share(self, *rows: Tensor) -> Candidates:
        return Ready(self, rows)

    def gathered(self, rows: Tensor, number: int) -> Tensor:
        """(N, ...) with this rank's rows first, in memory that the next tensor of this shape with
        this number in a visit overwrites"""
        key = (number, rows.shape[1:], rows.dtype)
        if key not in self._others:
            repeats = (self.num_columns // len(rows), *[1] * (rows.dim() - 1))
            self._others[key] = rows.detach().repeat(repeats)
        self._others[key][: len(rows)] = rows.detach()
        return self._others[key]


class Ready:
    def __init__(self, pool: ReadyPool, rows: tuple[Tensor, ...]) -> None:
        self._pool = pool
        self._rows = rows

    def visit(
        self,
        compute: Callable[[CandidateBlock], tuple[Tensor, ...]],
        reduce: tuple[str, ...],
        *extra: Tensor,
    ) -> tuple[Tensor, ...]:
        rows = []
        for number, tensor in enumerate((*self._rows, *extra)):
            rows.append(self._pool.gathered(tensor, number))
        local_rows = len(self._rows[0])
        results = compute(CandidateBlock(tuple(rows), range(local_rows), 0))
        return tuple(result[:local_rows].clone() for result in results)


def unit_rows(number: int, seed: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(number, WIDTH, generator=generator), dim=1).to(device)


class Subject:
    """One loss on one side. `step` is a forward and backward pass and returns the loss."""

    def __init__(
        self, name: str, side: str, local_rows: int, num_columns: int, device: str
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(0, num_columns // 2, (num_columns,), generator=generator)
        self._ids = self._ids.to(device)
        self._images = unit_rows(num_columns, 0, device)
        self._texts = F.normalize(self._images + 5 * unit_rows(num_columns, 1, device), dim=1)
        self._scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)
        self._bias = torch.tensor(-10.0, device=device, requires_grad=True)
        self._teachers = []
        if name == "similarity_kl":
            self._teachers = [unit_rows(num_columns, 2, device), unit_rows(num_columns, 3, device)]
        self._image = self._images[:local_rows].clone().requires_grad_()
        self._text = self._texts[:local_rows].clone().requires_grad_()
        self.leaves = [self._image, self._text, self._scale, self._bias]
        self._name = name
        self.step = self._ours if side == "clipx" else self._dense
        if side == "clipx":
            self._pool = ReadyPool(num_columns)
            # A gradient of the columns is made and sent home; it is no leaf's here.
            self.gradient_bytes = 4 * WIDTH * (2 * local_rows + num_columns)
        else:
            self.leaves += [self._images.requires_grad_(), self._texts.requires_grad_()]
            self.gradient_bytes = 4 * WIDTH * (2 * local_rows + 2 * num_columns)

    def _ours(self) -> Tensor:
        image, text, local_rows = self._image, self._text, len(self._image)
        if self._name == "similarity_kl":
            teacher = [rows[:local_rows] for rows in self._teachers]
            value = similarity_kl(
                image, text, self._scale, teacher[0], teacher[1], TEACHER_SCALE, self._pool
            )
        else:
            loss = LOSSES[self._name].build()
            value = loss(
                image,
                text,
                logit_scale=self._scale.log(),
                logit_bias=self._bias,
                pool=self._pool,
                ids=self._ids[:local_rows, None] if loss.id_kinds else None,
            ).loss
        value.backward()
        return value.detach()

    def _dense(self) -> Tensor:
        local_rows = len(self._image)
        teachers = self._teachers or [self._images.detach(), self._texts.detach()]
        rows = Rows(
            image=self._image,
            text=self._text,
            images=self._images,
            texts=self._texts,
            ids=self._ids[:local_rows],
            all_ids=self._ids,
            scale=self._scale,
            bias=self._bias,
            teacher_image=teachers[0][:local_rows],
            teacher_text=teachers[1][:local_rows],
            teacher_images=teachers[0],
            teacher_texts=teachers[1],
        )
        value = DENSE[self._name](rows)
        value.backward()
        return value.detach()


def difference(name: str, device: str) -> float:
    """Between the values of both sides for 64 rows in one process, relative to the value: proof
    that they compute the same loss."""
    values = [Subject(name, side, 64, 64, device).step() for side in ("clipx", "dense")]
    return ((values[0] - values[1]).abs() / values[1].abs()).item()


def peak_bytes(name: str, side: str, num_columns: int, device: str) -> int:
    subject = Subject(name, side, LOCAL_ROWS, num_columns, device)
    subject.step()  # the rows of other ranks come to lie ready, libraries load
    for leaf in subject.leaves:
        leaf.grad = None
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        subject.step()
        return torch.cuda.max_memory_allocated() - before - subject.gradient_bytes
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    subject.step()
    return status("VmHWM") - before - subject.gradient_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=list(DENSE))
    parser.add_argument("side", choices=["clipx", "dense"])
    parser.add_argument("columns", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    assert math.gcd(arguments.columns, LOCAL_ROWS) == LOCAL_ROWS, "ranks have equal rows"
    held = peak_bytes(arguments.name, arguments.side, arguments.columns, arguments.device)
    print(json.dumps({"bytes": held}))


if __name__ == "__main__":
    main()
