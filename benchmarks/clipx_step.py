"""clipx's side of benchmarks/step.py: its own training step on fixed batches, in bursts asked for
on stdin.

Speaks the protocol of benchmarks/peer_step.py --serve: one ready line, then for each line
`{"steps": n}` one line with `step_seconds` and `losses`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.distributed.runtime import keep_freed_memory, start
from clipx.distributed.wrap import SingleProcess
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.objectives.image_text import ImageText
from clipx.training.build import compile_towers
from clipx.training.learner import Learner
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.training.precision import build_precision
from clipx.training.step import Step
from clipx.types import Batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-json", required=True)
    parser.add_argument("--batch", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--precision", choices=["bf16", "fp32"], required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="as compile=towers")
    parser.add_argument("--warmup", type=int, default=3)
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    model = DualEncoder(ModelConfig(arguments.model_json).read())
    model.load_state_dict(load_file(arguments.init))
    model.to(device)
    if arguments.compile:
        compile_towers(model)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3))
    keep_freed_memory()  # as clipx train does
    precision = build_precision(arguments.precision, device)
    objective = ImageText(model, InfoNCE(), normalize=normalize)
    learner = Learner(
        start("auto"), model, objective, SingleProcess(objective), optimizer, precision
    )
    step = Step(learner, LocalPool())
    batches = read_batches(arguments.batch, pin=device.type == "cuda")
    done = 0

    def run(steps: int) -> dict[str, list[float]]:
        nonlocal done
        seconds, losses = [], []
        start = time.perf_counter()
        for number in range(steps):
            losses.append(step(batches[done % len(batches)]).metrics["loss"].item())
            if device.type == "cuda" and number in (0, steps - 1):
                torch.cuda.synchronize()  # with what the update still has to do
            now = time.perf_counter()
            seconds.append(now - start)
            start = now
            done += 1
        if device.type == "cuda" and steps > 1:  # as the peer's are counted
            seconds[1:] = [sum(seconds[1:]) / (steps - 1)] * (steps - 1)
        return {"step_seconds": seconds, "losses": losses}

    answer = {"ready": True, **run(arguments.warmup)}
    while True:
        ctypes.CDLL(None).malloc_trim(0)  # others' turn: what is free goes back to the system
        torch.cuda.empty_cache()
        print(json.dumps(answer), flush=True)
        if not (line := input_line()):
            break
        answer = run(json.loads(line)["steps"])


def input_line() -> str:
    try:
        return input()
    except EOFError:
        return ""


def read_batches(path: Path, *, pin: bool) -> list[Batch]:
    """Batches as clipx's loader gives them: uint8 images, captions cut to the longest of the
    batch."""
    data = np.load(path)
    out = []
    for image, text in zip(data["image"], data["text"], strict=True):
        longest = int(text.argmax(1).max()) + 1
        size = len(image)
        tensors = (torch.from_numpy(image), torch.from_numpy(text[:, :longest]))
        images, texts = (x.pin_memory() if pin else x for x in tensors)
        out.append(Batch({"image": images, "text": texts}, [""] * size, [0] * size, {}))
    return out


if __name__ == "__main__":
    main()
