"""One rank of R as each loss sees it, on one process: what benchmarks/loss.py compares.

Rank 0 has B local rows; the N = R x B columns of all ranks lie ready, as after a gather. What is
emulated is the exchange alone, for both alike: nothing travels, and what would go home is cut to
this rank's rows. Each computes its loss and the gradients of rows, columns, scale and bias.

As a program it prints the peak memory of one contestant in a process of its own: resident memory,
or on a GPU what the allocator gave out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip.loss as peer
import torch
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses import infonce, sigmoid
from clipx.types import CandidateBlock, Candidates

LOCAL_ROWS, WIDTH = 1024, 512
MIB = 1 << 20


class GivenColumns(LocalPool):
    """A gathered pool whose gather is done: the texts of all ranks, this rank's first."""

    def __init__(self, text: Tensor) -> None:
        self.text = text
        self.normalizers = text.new_zeros(len(text))

    def share(self, *rows: Tensor) -> Candidates:
        return self

    def visit(
        self,
        compute: Callable[[CandidateBlock], tuple[Tensor, ...]],
        reduce: tuple[str, ...],
        *extra: Tensor,
    ) -> tuple[Tensor, ...]:
        # In backward the normalizers of other ranks' texts, and the gradients of these, would be
        # gathered; here the normalizers of this rank, and its first gradient, stand for them.
        gathered = [self.normalizers, extra[1][0].expand(len(self.text))] if extra else []
        results = compute(CandidateBlock((self.text, *gathered), range(LOCAL_ROWS), 0))
        if reduce == ("logsumexp",):
            (self.normalizers,) = results
        return tuple(result[:LOCAL_ROWS].clone() for result in results)


def unit_rows(number: int, seed: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(number, WIDTH, generator=generator), dim=-1).to(device)


class Contestant:
    """`step()` is one forward and backward pass. `tensors` are its inputs, and each has a gradient
    after a step or takes part in one."""

    def __init__(self, name: str, num_columns: int, device: str = "cpu") -> None:
        self.name, self.num_columns, self.device = name, num_columns, device
        self.image = unit_rows(LOCAL_ROWS, 0, device).requires_grad_()
        self.text = unit_rows(num_columns, 1, device)
        self.scale = torch.tensor(math.log(1 / 0.07), device=device, requires_grad=True)
        self.bias = torch.tensor(-10.0, device=device, requires_grad=True)
        self.leaves = [self.image, self.scale, self.bias]
        # bytes of local rows and columns, and of as many gradients
        self.inputs_bytes = 2 * 4 * WIDTH * (2 * LOCAL_ROWS + num_columns)
        self.step = {
            "clipx infonce": lambda: self._ours(infonce.Config().build()),
            "clipx sigmoid": lambda: self._ours(sigmoid.Config().build()),
            "ClipLoss": self._clip_loss,
            "SigLipLoss bidir": lambda: self._siglip("bidir"),
            "SigLipLoss shift": lambda: self._siglip("shift"),
            "SigLipLoss gather": lambda: self._siglip("gather"),
        }[name]()

    def run(self) -> None:
        """Ends when the device has."""
        for leaf in self.leaves:
            leaf.grad = None
        self.step().backward()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _ours(self, loss: Any) -> Callable[[], Tensor]:
        text = self.text[:LOCAL_ROWS].clone().requires_grad_()
        self.leaves.append(text)
        pool = GivenColumns(self.text)
        scalars = {"logit_scale": self.scale, "logit_bias": self.bias}
        return lambda: loss(self.image, text, pool=pool, **scalars).loss

    def _clip_loss(self) -> Callable[[], Tensor]:
        """With local_loss and gather_with_grad: columns of both kinds, with gradient."""
        text = self.text[:LOCAL_ROWS].clone().requires_grad_()
        columns = (
            unit_rows(self.num_columns, 2, self.device).requires_grad_(),
            self.text.requires_grad_(),
        )
        self.leaves += [text, *columns]
        self.inputs_bytes += 2 * 4 * WIDTH * self.num_columns
        world = self.num_columns // LOCAL_ROWS
        loss = peer.ClipLoss(local_loss=True, gather_with_grad=True, world_size=world)

        def step() -> Tensor:
            vars(peer)["gather_features"] = lambda *_, **__: columns
            return loss(self.image, text, self.scale.exp())

        return step

    def _siglip(self, variant: str) -> Callable[[], Tensor]:
        pieces = [piece.clone().requires_grad_() for piece in self.text.split(LOCAL_ROWS)]
        self.text = self.text[:0]
        self.leaves += pieces
        loss = peer.SigLipLoss(world_size=len(pieces), dist_impl=variant)

        def step() -> Tensor:
            others: Iterator[Tensor] = iter(pieces[1:])
            vars(peer)["neighbour_exchange_with_grad"] = lambda *_: next(others)
            vars(peer)["neighbour_exchange_bidir_with_grad"] = lambda *_: (
                next(others),
                next(others),
            )
            vars(torch.distributed.nn)["all_gather"] = lambda _: pieces
            return loss(self.image, pieces[0], self.scale.exp(), self.bias)

        return step


def status(name: str) -> int:
    """Bytes of VmRSS (resident now) or VmHWM (most ever) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {name}")


def peak_bytes(name: str, num_columns: int, device: str) -> int:
    """Most memory of a step, beyond the inputs and their gradients.

    Inputs are resident before the high-water mark is set back; of the gradients, which the step
    makes, the bytes are subtracted.
    """
    contestant = Contestant(name, num_columns, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contestant.run()
        return torch.cuda.max_memory_allocated() - before - contestant.inputs_bytes // 2
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    contestant.run()
    return status("VmHWM") - before - contestant.inputs_bytes // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("columns", type=int, nargs="+")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    for _ in range(2):  # libraries load, threads start
        Contestant(arguments.name, 2 * LOCAL_ROWS, arguments.device).run()
    name, device = arguments.name, arguments.device
    print(json.dumps({str(n): peak_bytes(name, n, device) for n in arguments.columns}))


if __name__ == "__main__":
    main()
