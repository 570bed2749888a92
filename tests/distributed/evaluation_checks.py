"""What each rank does in tests/distributed/test_evaluation.py."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from tiny_runs import MODEL

from clipx.distributed.runtime import Runtime
from clipx.embed import Encoder
from clipx.evaluators import retrieval, zero_shot
from clipx.evaluators._ranks import PIECES, main_only, shared_out, together
from clipx.models.dual_encoder import DualEncoder
from clipx.training.evaluation import evaluate, evaluate_in_training, flat
from clipx.training.interruption import Interrupted, Stop
from clipx.training.rounds import in_rounds
from clipx.types import Ranks, Result, Setting, UserError

FOLDER = "CLIPX_TEST_SETS"


def encoder() -> Encoder:
    torch.manual_seed(0)
    model = DualEncoder(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from one another to tell ranks apart
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Encoder(model, MODEL)


def evaluated(runtime: Runtime) -> dict[str, Any]:
    """Plain numbers of both kinds of set, and whether this rank embedded its share alone."""
    folder, seen = Path(os.environ[FOLDER]), []
    setting = Setting(ranks=runtime, progress=lambda done, total: seen.append(done))
    sets = {
        "classes": zero_shot.Config(path=str(folder / "classes")),
        "captions": retrieval.Config(path=str(folder / "captions")),
    }
    results = evaluate(encoder(), sets, setting)
    plain = {
        name: {
            "metrics": result.metrics,
            "intervals": result.intervals,
            "samples": {k: v.tolist() for k, v in result.samples.items()},
            "keys": result.keys,
        }
        for name, result in results.items()
    }
    return {"results": plain, "batches": len(seen)}


class FailsOnLast:
    """Fails on the last rank: when its set is read, in its own work, or between two rounds."""

    def __init__(self, when: str) -> None:
        self.when = when

    def build(self) -> FailsOnLast:
        if self.when == "build" and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            raise UserError("not on this machine")
        return self

    def evaluate(self, encoder: Any, setting: Setting) -> Result:
        def work() -> int:
            if setting.ranks.rank == setting.ranks.world_size - 1:
                raise ZeroDivisionError("on one rank")
            return 1

        if self.when == "between":
            together(setting.ranks, lambda: 1)
            if setting.ranks.rank == setting.ranks.world_size - 1:
                raise MemoryError("on one rank, in no round")
            return Result({"sum": float(sum(together(setting.ranks, lambda: 1)))})
        if self.when == "end":
            together(setting.ranks, lambda: 1)
            return Result({"sum": work()})
        if self.when == "size":
            count = 5 * PIECES - setting.ranks.rank
            return Result({"sum": float(sum(shared_out(setting.ranks, count, int)))})
        return Result({"sum": float(sum(together(setting.ranks, work)))})


class Fine(FailsOnLast):
    def evaluate(self, encoder: Any, setting: Setting) -> Result:
        return Result({"sum": float(sum(together(setting.ranks, lambda: 1)))})


def failing(runtime: Runtime) -> dict[str, Any]:
    said: list[str] = []
    kinds = ("build", "work", "between", "end", "size")
    found = evaluate_in_training(
        encoder(),
        {kind: FailsOnLast(kind) for kind in kinds} | {"fine": Fine("never")},
        Setting(ranks=runtime),
        said.append,
    )
    return {"said": said, "metrics": {name: result.metrics for name, result in found.items()}}


class Rounds:
    """An evaluator with all that evaluators do: shared work in rounds, work of rank 0 alone, and
    work that each does for itself."""

    def build(self) -> Rounds:
        return self

    def evaluate(self, encoder: Any, setting: Setting) -> Result:
        def piece(number: int) -> int:
            time.sleep(0.001 * (number % 3))
            return number

        found = shared_out(setting.ranks, 5 * PIECES, piece)
        total = main_only(setting.ranks, lambda: sum(map(piece, found)))
        busy = sum(piece(number) for number in range(10))
        return Result({"sum": float(total), "busy": float(busy)})


def signaled(runtime: Runtime) -> list[tuple[bool, str | None]]:
    """Many evaluations, in each of which one rank, all or none get a signal at some time. Of each:
    whether any did, and how it ended. A rank that left alone would leave its peers in a collective,
    or in another than its own, until the test's timeout."""
    draw, outcomes = random.Random(runtime.rank), []
    for trial in range(40):
        runtime.barrier()
        with Stop().listening() as stop:
            asked = trial % (runtime.world_size + 2)  # which rank, all, or none
            timer = threading.Timer(draw.uniform(0, 0.12), os.kill, (os.getpid(), signal.SIGUSR1))
            if asked in (runtime.rank, runtime.world_size):
                timer.start()
            ended = ended_by(runtime, stop)
            timer.cancel()
        outcomes.append((asked <= runtime.world_size, ended))
    return outcomes


NO_ENCODER: Any = None


def ended_by(runtime: Runtime, stop: Stop) -> str | None:
    def evaluate_two(ranks: Ranks) -> dict[str, Result]:
        sets = {"a": Rounds(), "b": Rounds()}
        return evaluate_in_training(
            encoder=None, evaluators=sets, setting=Setting(ranks), say=print
        )

    try:
        found = in_rounds(runtime, stop, evaluate_two)
    except Interrupted as interrupted:
        return str(interrupted)
    count = sum(range(5 * PIECES))
    assert flat(found) == {"a-sum": count, "a-busy": 45, "b-sum": count, "b-busy": 45}
    return None


def overdue(runtime: Runtime) -> str | None:
    """The time limit is over on the last rank alone, whose clock is ahead."""
    stop = Stop()
    if runtime.rank == runtime.world_size - 1:
        stop.deadline = time.time() + 0.02
    return ended_by(runtime, stop)
