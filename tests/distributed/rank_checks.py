"""What each rank computes and hands back. The test files judge it: here nothing is asserted.

All of a world size is done in one launch, because a process needs seconds to import torch.
Tensors go back as lists, which need no shared memory between processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipx.distributed.collectives import all_gather, pass_right, reduce_scatter
from clipx.distributed.runtime import Runtime
from clipx.types import Reduce, UserError

LOCAL_ROWS = 3
BIG = (1 << 62) + 12345


def results_of(rank: int, world_size: int) -> Tensor:
    """(R * B, 2) what `rank` says of all rows: logits of -200 to 200, whose exponentials neither
    float32 nor a common maximum would hold, and -inf throughout for the first row."""
    generator = torch.Generator().manual_seed(100 + rank)
    said = 200 * torch.randn(world_size * LOCAL_ROWS, 2, generator=generator, dtype=torch.float64)
    said[0] = -torch.inf
    return said


def everything(runtime: Runtime) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        results = {
            "rank": runtime.rank,
            "gather": _gather(runtime),
            "sum": _reduce(runtime, "sum"),
            "logsumexp": _reduce(runtime, "logsumexp"),
            "right": _right(runtime),
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
    base = torch.arange(2.0 * LOCAL_ROWS, dtype=torch.float64)
    rows = base.view(2, LOCAL_ROWS).T + 100 * runtime.rank
    return {"rows": rows.tolist(), "out": all_gather(rows).tolist()}


def _reduce(runtime: Runtime, reduce: Reduce) -> list[list[float]]:
    return reduce_scatter(results_of(runtime.rank, runtime.world_size), reduce).tolist()


def _right(runtime: Runtime) -> list[Any]:
    """Two exchanges under way at once, of two tensors and of one, taken up in the other order."""
    rank = runtime.rank
    first = pass_right([torch.full((2, 3), float(rank)).T, torch.tensor([rank, 7])], tag=0)
    second = pass_right([torch.tensor([10.0 + rank])], tag=1)
    return [[t.tolist() for t in wait()] for wait in (second, first)]


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
