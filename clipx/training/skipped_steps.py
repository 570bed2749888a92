"""What a run survives: steps whose loss or gradient is not finite are left out on all ranks,
counted, and stop the run where they do not end."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clipx.checkpoints.format import TrainState
from clipx.distributed.runtime import Runtime
from clipx.trackers.jsonl import JsonLines
from clipx.training.step import Outcome, StepResult
from clipx.types import Batch, UserError

_SHOWN = 16  # sample keys in a message
_FILE = "nonfinite.jsonl"


def counted(state: TrainState, outcome: Outcome) -> TrainState:
    """The state after one more step. An overflow of float16 neither ends nor prolongs a row of
    non-finite steps."""
    bad = outcome == "nonfinite"
    return replace(
        state,
        skipped_steps=state.skipped_steps + bad,
        overflowed_steps=state.overflowed_steps + (outcome == "overflow"),
        nonfinite_in_a_row=state.nonfinite_in_a_row + 1
        if bad
        else state.nonfinite_in_a_row * (outcome == "overflow"),
    )


def report_nonfinite(
    runtime: Runtime,
    run_dir: Path,
    state: TrainState,
    batch: Batch,
    stepped: StepResult,
    limit: int,
) -> None:
    """Write down which samples a skipped step had, of the ranks that can be told apart. All ranks
    take part. Raises UserError where `limit` steps in a row were skipped.

    state: after the step
    """
    keys = [batch.keys[row] for row in stepped.bad_rows]
    found = dict(enumerate(runtime.gather((keys, batch.keys))))
    suspects = {rank: bad for rank, (bad, _) in found.items() if bad}
    told = bool(suspects)
    if not told:  # finite features, non-finite loss or gradient: any sample may be the reason
        suspects = {rank: everything for rank, (_, everything) in found.items()}
    if runtime.is_main:
        file = JsonLines(run_dir / _FILE)
        for rank, names in suspects.items():
            file.log({"step": state.step, "rank": rank, "features": told, "keys": names})
        file.close()
    if state.nonfinite_in_a_row >= limit:
        raise UserError(_message(state, suspects, run_dir / _FILE, told=told))


def _message(state: TrainState, suspects: dict[int, list[str]], path: Path, *, told: bool) -> str:
    rank, keys = next(iter(suspects.items()))
    shown = ", ".join(keys[:_SHOWN])
    rest = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    what = "features are not finite for" if told else "loss or gradient is not finite for"
    others = f"; ranks {', '.join(map(str, [*suspects][1:]))} too" if len(suspects) > 1 else ""
    return (
        f"step {state.step}: {state.nonfinite_in_a_row} steps in a row had no finite loss and "
        f"gradient; on rank {rank} {what} {shown}{rest}{others}. All are in {path}. Look at these "
        "samples, lower optim.lr, lengthen optim.warmup, or set optim.clip_grad_norm; "
        "max_nonfinite_steps says how many steps are waited for"
    )


def memory_gib(device: torch.device) -> float:
    """Most memory in use: of this process on a CPU, allocated since the last call on a GPU."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def line(state: TrainState, clamped: float, memory: float) -> dict[str, Any]:
    """What a log line says of a run's health.

    clamped: steps since the last line in which the clamp changed logit_scale
    """
    return {
        "train/clamped_steps": int(clamped),
        "skipped_steps": state.skipped_steps,
        "overflowed_steps": state.overflowed_steps,
        "memory_gib": round(memory, 3),
    }
