"""What each rank does to save a model in training and to take it up again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from wrap_checks import MODEL, Arrays, adamw, arrays, build, take

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints import tensor_files
from clipx.checkpoints.format import About, TrainState
from clipx.checkpoints.saver import Saver
from clipx.checkpoints.sharded import whole
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import Parallel
from clipx.training.step import Step


def everything(step: Step) -> Arrays:
    """Weights, averages, and what the optimizer has of each parameter: whole."""
    learner = step.learner
    assert learner.ema is not None
    groups = {
        "weights": learner.encoder.state_dict(),
        "ema": learner.ema.state_dict(),
        **{str(n): items for n, items in learner.optimizer.state_dict()["state"].items()},
    }
    found = {
        f"{group}.{name}": tensor
        for group, tensors in whole(groups, copy=Tensor.clone).items()
        for name, tensor in tensors.items()
    }
    return arrays(found)


def save(runtime: Runtime, folder: Path, parallel: Parallel, fault: bool) -> dict[str, Any]:
    """Two steps, a checkpoint, and two more steps before its first byte is written.

    fault: of the last rank's disk
    """
    step = build(runtime, parallel, adamw)
    take(step, range(2))
    write = tensor_files.write
    may_write = threading.Event()
    written: list[str] = []

    def after_the_save(*arguments: Any) -> str:
        may_write.wait(5)  # in vain, where the save waits for what it writes
        written.append(str(arguments[0]))
        if fault and runtime.rank == runtime.world_size - 1:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    tensor_files.write = after_the_save
    saver = Saver(
        runtime,
        step.learner,
        folder if runtime.is_main else None,
        About(MODEL),
        newest=None,
        every_seconds=None,
        asynchronous=True,
    )
    expected = everything(step)
    torch.manual_seed(1000 + runtime.rank)
    assert saver.save(TrainState(step=2), wait=False) is None
    held = bool(written)
    take(step, range(2, 4))
    may_write.set()
    fault_said = saver.finish()
    tensor_files.write = write
    return {"expected": expected, "held": held, "fault": fault_said, "newest": saver.newest}


def load(runtime: Runtime, folder: Path, parallel: Parallel) -> dict[str, Any]:
    path, _ = checkpoints.newest_valid(folder)
    assert path is not None
    step = build(runtime, parallel, adamw)
    learner = step.learner
    learner.load(checkpoints.load(path, learner.target))
    seed = torch.initial_seed()
    moments = [items["exp_avg"] for items in learner.optimizer.state_dict()["state"].values()]
    here = sum(local(tensor).numel() for tensor in moments)
    found = everything(step)
    take(step, range(2, 4))  # and it goes on
    return {"found": found, "numbers": here, "seed": seed}


def local(tensor: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
