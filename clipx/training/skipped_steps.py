"""Steps whose loss or gradient is not finite: skipped on all ranks, counted, reported with their
samples, and an error if they do not end."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import torch

from clipx.checkpoints.train_state import TrainState
from clipx.distributed.runtime import Runtime
from clipx.trackers.jsonl import JsonLines
from clipx.training.step import Outcome, StepResult
from clipx.types import Batch, UserError

_MAX_SHOWN_KEYS = 16
_FILE = "nonfinite.jsonl"


def count_outcome(state: TrainState, outcome: Outcome) -> TrainState:
    """The state with one more step counted by its outcome."""
    if outcome == "updated":
        return replace(state, nonfinite_in_a_row=0)
    if outcome == "overflow":
        # An overflow of float16 neither ends nor extends a row of non-finite steps.
        return replace(state, overflowed_steps=state.overflowed_steps + 1)
    return replace(
        state,
        skipped_steps=state.skipped_steps + 1,
        nonfinite_in_a_row=state.nonfinite_in_a_row + 1,
    )


def report_nonfinite(
    runtime: Runtime,
    run_dir: Path,
    state: TrainState,
    batch: Batch,
    result: StepResult,
    *,
    limit: int,
) -> None:
    """Write the samples of a skipped step to nonfinite.jsonl. All ranks take part. Raises UserError
    after `limit` skipped steps in a row.

    state: after the step
    """
    # Every rank has skipped the step, but often only one has the sample that is the cause.
    bad_keys = [batch.keys[row] for row in result.bad_rows]
    suspects: dict[int, list[str]] = {}
    all_keys: dict[int, list[str]] = {}
    for rank, (bad, keys) in enumerate(runtime.gather((bad_keys, batch.keys))):
        all_keys[rank] = keys
        if bad:
            suspects[rank] = bad
    has_bad_features = bool(suspects)
    if not suspects:  # features are finite but the loss is not, so any sample may be the cause
        suspects = all_keys

    path = run_dir / _FILE
    if runtime.is_main:
        file = JsonLines(path)
        for rank, keys in suspects.items():
            file.log({"step": state.step, "rank": rank, "features": has_bad_features, "keys": keys})
        file.close()
    if state.nonfinite_in_a_row < limit:
        return
    rank, keys = next(iter(suspects.items()))
    what = "features are" if has_bad_features else "loss or gradient is"
    shown = ", ".join(keys[:_MAX_SHOWN_KEYS])
    if len(keys) > _MAX_SHOWN_KEYS:
        shown += f" and {len(keys) - _MAX_SHOWN_KEYS} more"
    if len(suspects) > 1:
        other_ranks = ", ".join(str(other) for other in list(suspects)[1:])
        shown += f"; ranks {other_ranks} too"
    raise UserError(
        f"step {state.step}: {state.nonfinite_in_a_row} steps in a row had no finite loss and "
        f"gradient; on rank {rank} {what} not finite for {shown}. All are in {path}. Look at these "
        "samples, lower optim.lr, lengthen optim.warmup, or set optim.clip_grad_norm; "
        "max_nonfinite_steps is the number of steps after which a run stops"
    )


def memory_gib(device: torch.device) -> float:
    """Peak memory: of this process on a CPU, allocated since the last call on a GPU."""
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak_bytes / 2**30
    # The kernel counts from the start of the process; there is no way to begin anew.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
