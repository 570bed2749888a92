"""What each rank computes and hands back. The test files judge it: here nothing is asserted.

All of a world size is done in one launch, because a process needs seconds to import torch.
Tensors go back as lists, which need no shared memory between processes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from clipx.distributed.collectives import all_gather
from clipx.distributed.pool import build_pool
from clipx.distributed.runtime import Runtime
from clipx.losses.infonce import InfoNCE
from clipx.types import UserError

LOCAL_ROWS = 3
BIG = (1 << 62) + 12345


class Towers(nn.Module):
    """Two small towers in float64 with the outputs of DualEncoder."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)).double()
        self.text = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5)).double()
        log_scale = torch.tensor(math.log(scale), dtype=torch.float64)
        self.logit_scale = nn.Parameter(log_scale)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = [F.normalize(t(x), dim=-1) for t, x in ((self.visual, image), (self.text, text))]
        return features[0], features[1], self.logit_scale


def global_batch(world_size: int) -> tuple[Tensor, Tensor]:
    """The rows of all ranks, rank by rank: the same on every process."""
    generator = torch.Generator().manual_seed(1)
    rows = world_size * LOCAL_ROWS
    image = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return image, torch.randn(rows, 4, generator=generator, dtype=torch.float64)


def weights_of(rank: int, world_size: int) -> Tensor:
    """(R * B, 2) by which `rank` weighs the gathered rows: another for each rank."""
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn(world_size * LOCAL_ROWS, 2, generator=generator, dtype=torch.float64)


def everything(runtime: Runtime) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        results = {
            "rank": runtime.rank,
            "gather": _gather(runtime),
            "infonce": {scale: _infonce(runtime, scale) for scale in (1 / 0.07, 100.0)},
            "values": _values(runtime),
            "agree": {
                "nobody": _agree(runtime, lambda _: None),
                "last": _agree(
                    runtime, lambda r: f"of {r}" if r == runtime.world_size - 1 else None
                ),
                "all": _agree(runtime, lambda r: f"of {r}"),
            },
        }
    return results | {"warnings": [str(w.message) for w in caught if "distributed" in str(w)]}


def _gather(runtime: Runtime) -> dict[str, Any]:
    """Rows that are not contiguous in memory, because slices of features are not."""
    rank = runtime.rank
    base = torch.arange(2.0 * LOCAL_ROWS, dtype=torch.float64).view(2, LOCAL_ROWS).T + 100 * rank
    rows = base.requires_grad_()
    out = all_gather(rows)
    (out * weights_of(rank, runtime.world_size)).sum().backward()
    assert rows.grad is not None
    return {"rows": rows.tolist(), "out": out.tolist(), "grad": rows.grad.tolist()}


def _infonce(runtime: Runtime, scale: float) -> dict[str, Any]:
    model = DistributedDataParallel(Towers(scale))
    mine = slice(runtime.rank * LOCAL_ROWS, (runtime.rank + 1) * LOCAL_ROWS)
    image, text = global_batch(runtime.world_size)
    pool = build_pool(runtime.world_size)
    out = InfoNCE()(*model(image[mine], text[mine]), pool)
    out.loss.backward()
    named = model.module.named_parameters()
    return {
        "loss": out.loss.item(),
        "accuracy": out.metrics["image_to_text_accuracy"].item(),
        "offset": pool.offset(LOCAL_ROWS),
        "gradients": {name: p.grad.tolist() for name, p in named if p.grad is not None},
    }


def _values(runtime: Runtime) -> dict[str, Any]:
    rank = runtime.rank
    return {
        "sum": runtime.sum_int(10 + rank),
        "sum_modulo": runtime.sum_int(BIG + rank),
        "gather": runtime.gather({"rank": rank, "text": "x" * rank}),
        "average": runtime.average(torch.tensor([float(rank), 2.5])).tolist(),
        "is_main": runtime.is_main,
    }


def _agree(runtime: Runtime, fault: Callable[[int], str | None]) -> str | None:
    try:
        runtime.agree(fault(runtime.rank))
    except UserError as error:
        return str(error)
    return None


def fail_on_rank_1(runtime: Runtime) -> None:
    if runtime.rank == 1:
        raise ValueError("the reason of rank 1")
    runtime.barrier()
