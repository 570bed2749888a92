"""What each rank does in tests/distributed/test_evaluation.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from training import MODEL

from clipx.distributed.runtime import Runtime
from clipx.embed import Encoder
from clipx.engine.evaluate import evaluate, evaluate_in_training
from clipx.evaluators import retrieval, zero_shot
from clipx.evaluators._ranks import together
from clipx.models.dual_encoder import DualEncoder
from clipx.types import Result, Setting, UserError

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
    """Fails on the last rank, in its own work, or when its set is read."""

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

        return Result({"sum": float(sum(together(setting.ranks, work)))})


class Fine(FailsOnLast):
    def evaluate(self, encoder: Any, setting: Setting) -> Result:
        return Result({"sum": float(sum(together(setting.ranks, lambda: 1)))})


def failing(runtime: Runtime) -> dict[str, Any]:
    said: list[str] = []
    found = evaluate_in_training(
        encoder(),
        {"a": FailsOnLast("build"), "b": FailsOnLast("work"), "c": Fine("never")},
        Setting(ranks=runtime),
        said.append,
    )
    return {"said": said, "metrics": {name: result.metrics for name, result in found.items()}}
