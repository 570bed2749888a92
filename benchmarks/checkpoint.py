"""Training time that a checkpoint costs: waited for, written by a thread, and `torch.save`.

    python benchmarks/checkpoint.py [--check] [--rounds 3] [--folder /a/disk]

Bursts of the same training steps on fixed batches, without a save and with one of each kind, take
turns; the loss is what a burst takes longer than the one without in the same round, and figures are
medians over rounds. A burst ends when its save is on the disk. clipx's saves are synced, hashed and
renamed into place; torch.save is what it is: one file, none of that. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from clipx.checkpoints.format import About, TrainState
from clipx.checkpoints.saver import Saver
from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.distributed.runtime import start
from clipx.distributed.wrap import SingleProcess
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.objectives.image_text import ImageText
from clipx.training.learner import Learner
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.training.precision import build_precision
from clipx.training.step import Step
from clipx.types import Batch

BAR = 0.25
"""An asynchronous save holds the loop up for at most this share of the time that torch.save does.
What is lost in all is more on a CPU, whose cores the thread takes from training; on a GPU the copy
to the host is left."""


@dataclass(frozen=True)
class Case:
    """steps: of a burst, enough for a save to be written meanwhile"""

    name: str
    model: str
    batch_size: int
    steps: int


CASES = {
    "demo": Case("demo_tiny", "configs/model/demo_tiny.json", 128, 12),
    "vit": Case("ViT-B-32", "ViT-B-32", 8, 6),
}


class Training:
    """One model in training, and its ways of saving."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder, self.count = case, folder, 0
        self.runtime = start("auto")
        device = self.runtime.device
        model_json = ModelConfig(case.model).read()
        encoder = DualEncoder(model_json).to(device)
        objective = ImageText(encoder, InfoNCE(), normalize=normalize)
        optimizer = build_optimizer(encoder, OptimConfig(lr=1e-5))
        precision = build_precision("auto", device)
        self.learner = Learner(
            self.runtime, encoder, objective, SingleProcess(objective), optimizer, precision
        )
        self.step = Step(self.learner, LocalPool())
        size, text_cfg = model_json["vision_cfg"]["image_size"], model_json["text_cfg"]
        width = min(16, text_cfg.get("context_length", 77))
        image = torch.randint(0, 256, (case.batch_size, 3, size, size), dtype=torch.uint8)
        text = torch.randint(1, 1000, (case.batch_size, width))
        text[:, -1] = text_cfg.get("vocab_size", 49408) - 1  # the end token
        rows = list(range(case.batch_size))
        views = {"image": image, "text": text}
        self.batch = Batch(views, [str(row) for row in rows], rows, {})
        self.about = About(model_json, keep=1)
        self.savers = {kind: self._saver(kind == "asynchronous") for kind in KINDS[1:3]}
        self.train(2)  # the optimizer has its state

    def _saver(self, asynchronous: bool) -> Saver:
        return Saver(
            self.runtime,
            self.learner,
            self.folder,
            self.about,
            newest=None,
            every_seconds=None,
            asynchronous=asynchronous,
        )

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step(self.batch)

    def save(self, kind: str) -> Callable[[], object]:
        """Begins a save. Returns what ends it."""
        self.count += 1
        if kind == "none":
            return lambda: None
        if kind == "torch.save":
            state = {
                "model": self.learner.encoder.state_dict(),
                "optimizer": self.learner.optimizer.state_dict(),
            }
            torch.save(state, self.folder / "torch.pt")
            return lambda: None
        saver = self.savers[kind]
        fault = saver.save(TrainState(step=self.count), wait=False)
        assert fault is None, fault
        return lambda: _no_fault(saver.finish())


def _no_fault(fault: str | None) -> None:
    assert fault is None, fault


KINDS = ("none", "synchronous", "asynchronous", "torch.save")


def burst(training: Training, kind: str) -> tuple[float, float]:
    """(seconds of all, seconds that the save held up the loop)"""
    began = time.perf_counter()
    training.train(1)
    asked = time.perf_counter()
    end = training.save(kind)
    held = time.perf_counter() - asked
    training.train(training.case.steps - 1)
    end()
    return time.perf_counter() - began, held


def measure(case: Case, folder: Path, rounds: int) -> dict[str, float | str]:
    training = Training(case, folder)
    for kind in KINDS[1:]:
        burst(training, kind)  # buffers are found, files are there
    lost: dict[str, list[float]] = {kind: [] for kind in KINDS[1:]}
    held: dict[str, list[float]] = {kind: [] for kind in KINDS[1:]}
    steps = []
    for _ in range(rounds):
        plain, _ = burst(training, "none")
        steps.append(plain / case.steps)
        for kind in KINDS[1:]:
            seconds, waited = burst(training, kind)
            lost[kind].append(seconds - plain)
            held[kind].append(waited)
    newest = max(folder.glob("step_*"))
    num_bytes = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    result: dict[str, float | str] = {"model": case.name, "mib": num_bytes / 2**20}
    result["step_seconds"] = statistics.median(steps)
    for kind in KINDS[1:]:
        result[f"{kind} lost_seconds"] = statistics.median(lost[kind])
        result[f"{kind} held_seconds"] = statistics.median(held[kind])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the bar is not met")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    arguments = parser.parse_args()
    results = []
    for name in arguments.cases:
        folder = Path(tempfile.mkdtemp(prefix="clipx-checkpoint-", dir=arguments.folder))
        try:
            results.append(measure(CASES[name], folder, arguments.rounds))
        finally:
            shutil.rmtree(folder)
    show(results)
    ratios = {
        str(r["model"]): float(r["asynchronous held_seconds"]) / float(r["torch.save held_seconds"])
        for r in results
    }
    print(json.dumps({"results": results, "held up, over torch.save": ratios, "bar": BAR}))
    missed = [name for name, ratio in ratios.items() if ratio > BAR]
    if arguments.check and missed:
        sys.exit(f"held up for more than {BAR} of torch.save: {', '.join(missed)}")


def show(results: list[dict[str, float | str]]) -> None:
    table = Table("model", "MiB", "step", *(f"{kind}: lost (held up)" for kind in KINDS[1:]))
    for r in results:
        cells = [
            f"{r[f'{kind} lost_seconds']:.3f} s ({r[f'{kind} held_seconds']:.3f} s)"
            for kind in KINDS[1:]
        ]
        table.add_row(str(r["model"]), f"{r['mib']:.0f}", f"{r['step_seconds']:.3f} s", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
