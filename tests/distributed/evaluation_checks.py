"""What each rank does in tests/distributed/test_distributed_evaluation.py."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tiny_runs import MODEL
from torch import Tensor

from clipx.distributed.runtime import Runtime
from clipx.embed import Encoder
from clipx.evaluators import distributed, retrieval, validation_loss, zero_shot
from clipx.evaluators.distributed import embed_images, exchange, on_main
from clipx.models.dual_encoder import DualEncoder
from clipx.training.evaluation import evaluate_each, evaluate_in_training, flat
from clipx.training.interruption import Stop
from clipx.types import Ranks, Result, Setting, StopRequested, UserError

NUM_IMAGES = 96  # 6 exchanges of two ranks that embed 8 batches of one image each


def encoder() -> Encoder:
    torch.manual_seed(0)
    model = DualEncoder(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from zero that ranks would differ
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Encoder(model, MODEL)


def evaluated(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Plain numbers of both kinds of set, and how many batches this rank embedded."""
    batches = []
    setting = Setting(ranks=ranks, progress=lambda done, total: batches.append(done))
    sets = {
        "classes": zero_shot.Config(path=str(folder / "classes")),
        "captions": retrieval.Config(path=str(folder / "captions")),
        "held_out": validation_loss.Config(
            source={"name": "webdataset", "shards": str(folder / "captions/test")}, batch_size=50
        ),
    }
    results, errors = evaluate_each(encoder(), sets, setting)
    assert errors == []
    plain = {
        name: {
            "metrics": result.metrics,
            "intervals": result.intervals,
            "samples": {k: v.tolist() for k, v in result.samples.items()},
            "keys": result.keys,
        }
        for name, result in results.items()
    }
    return {"results": plain, "batches": len(batches)}


class Slow:
    """Embeds an image in a millisecond."""

    image_size = 8

    def encode_image(self, images: list[Tensor]) -> Tensor:
        time.sleep(0.001)
        return torch.ones(len(images), 1)


def embed(setting: Setting, count: int, failing_row: int | None = None) -> Tensor:
    """Features of `count` images, each a batch, so that ranks exchange after 8 of their own."""

    def read(row: int) -> Tensor:
        if row == failing_row:
            raise ZeroDivisionError("on one rank")
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

    slow: Any = Slow()
    with mock.patch.object(distributed, "IMAGES_PER_BATCH", 1):
        return embed_images(slow, read, [str(n) for n in range(count)], setting)


class FailsOnLast:
    """Fails on the last rank: when it is built, while images are embedded, before a collective of
    the others, at the very end, or by having another test set."""

    def __init__(self, when: str) -> None:
        self.when = when

    def build(self) -> FailsOnLast:
        if self.when == "build" and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            raise UserError("not on this machine")
        return self

    def evaluate(self, encoder: Any, setting: Setting) -> Result:
        ranks = setting.ranks
        is_last = ranks.rank == ranks.world_size - 1
        if self.when == "embed":
            # The row is embedded by the last rank, in the middle of the set.
            embed(setting, 60, failing_row=12 * ranks.world_size - 1)
        embed(setting, 50 + (is_last and self.when == "size"))
        if is_last and self.when == "between":
            raise MemoryError("on one rank, before a collective")
        total = on_main(setting, sum, [1, 2])
        if is_last and self.when == "end":
            raise ZeroDivisionError("at the end")
        return Result({"sum": float(total)})


def failing(runtime: Runtime, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Evaluators that fail on the last rank, each at one of these places."""
    messages: list[str] = []
    evaluators = {kind: FailsOnLast(kind) for kind in kinds}
    results = evaluate_in_training(encoder(), evaluators, Setting(ranks=runtime), messages.append)
    return {"messages": messages, "metrics": {name: r.metrics for name, r in results.items()}}


class Complete:
    """Does all that evaluators do: embeds with the others, computes on rank 0, and on each rank."""

    def build(self) -> Complete:
        return self

    def evaluate(self, encoder: Any, setting: Setting) -> Result:
        features = embed(setting, NUM_IMAGES)
        total = on_main(setting, float, features.sum())
        time.sleep(0.01)
        return Result({"sum": total, "ranks": float(len(exchange(setting, None)))})


def signaled(runtime: Runtime, trials: int) -> list[tuple[bool, str | None]]:
    """Many evaluations, in each of which one rank, all or none get a signal at some time. Of each:
    whether any did, and how it ended. A rank that left alone would leave its peers in a collective,
    or in another than its own, until the test's timeout."""
    draw = random.Random(runtime.rank)
    outcomes = []
    for trial in range(trials):
        runtime.barrier()
        with Stop().listening() as stop:
            receiver = trial % (runtime.world_size + 2)  # a rank, all, or none
            delay = draw.uniform(0, 0.15)
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGUSR1))
            if receiver in (runtime.rank, runtime.world_size):
                timer.start()
            reason = stopped_by(runtime, stop)
            timer.cancel()
        outcomes.append((receiver <= runtime.world_size, reason))
    return outcomes


def stopped_by(runtime: Runtime, stop: Stop) -> str | None:
    """Why two evaluations ended early."""
    setting = Setting(runtime, stop_reason=lambda: stop.reason)
    sets = {"a": Complete(), "b": Complete()}
    unused: Any = None
    try:
        results = evaluate_in_training(unused, sets, setting, print)
    except StopRequested as request:
        return str(request)
    ranks = runtime.world_size
    assert flat(results) == {
        "a-sum": NUM_IMAGES,
        "a-ranks": ranks,
        "b-sum": NUM_IMAGES,
        "b-ranks": ranks,
    }
    return None


def overdue(runtime: Runtime, seconds: float) -> str | None:
    """The time limit is over on the last rank alone, whose clock is ahead."""
    stop = Stop()
    if runtime.rank == runtime.world_size - 1:
        stop.deadline = time.time() + seconds
    return stopped_by(runtime, stop)
