"""A checkpoint that open_clip's trainer wrote goes on in clipx: the same batches, the same losses.

    bash benchmarks/peer_env.sh                      # once: the peer in an environment of its own
    python benchmarks/continue_open_clip.py [--check]

open_clip_train itself trains a tiny model for 20 steps on the CPU in float32, from random weights
and a CSV file of pictures, writes epoch_1.pt, and trains on. `clipx import open_clip` makes a run
of that checkpoint, which gets the peer's own batches of the steps 21, 22 ... The loss of step 21
shows that the weights came over, that of step 22 that the moments, the learning rate and the step
count did. The last column is a control: the same run with the moments removed.

Prints a table and one JSON line; --check fails where a loss differs by more than 1e-3, or where the
control does not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from clipx.config import load
from clipx.data.loader import Loaded
from clipx.data.preprocessing import MEAN, STD
from clipx.data.sources import synthetic
from clipx.migrate.run import CONFIG_FILE, import_run
from clipx.training.config import TrainConfig
from clipx.training.session import Session

ROOT = Path(__file__).parents[1]
BAR = 1e-3
BATCH, STEPS, NEXT_STEPS = 16, 20, 5
MODEL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def write_corpus(folder: Path) -> Path:
    """A tab-separated table, as open_clip reads it, of pictures of shapes."""
    source = synthetic.Config(samples=BATCH * STEPS, size=40, shards=1).build()
    table = folder / "train.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["filepath", "title"])
        for number in range(BATCH * STEPS):
            raw = source.read(0, number)
            picture = folder / f"{number:04d}.png"
            picture.write_bytes(raw.image)
            rows.writerow([picture, raw.text["txt"]])
    return table


def train_peer(env: Path, folder: Path) -> dict[str, Any]:
    """The peer's record. Its run is folder/logs/peer."""
    python = env / "bin/python"
    if not python.exists():
        sys.exit(f"{python} does not exist; make it by: bash benchmarks/peer_env.sh {env}")
    model = folder / "model"
    model.mkdir()
    config = {"model_cfg": MODEL, "preprocess_cfg": {}}
    (model / "open_clip_config.json").write_text(json.dumps(config))
    flags = ["--model", f"local-dir:{model}", "--train-data", write_corpus(folder)]
    flags += ["--device", "cpu", "--precision", "fp32", "--workers", "0", "--batch-size", BATCH]
    flags += ["--epochs", "2", "--warmup", "10", "--lr", "1e-3", "--log-every-n-steps", "1"]
    flags += ["--logs", folder / "logs", "--name", "peer"]
    script = Path(__file__).with_name("peer_continue.py")
    record = folder / "record.pt"
    command = [python, script, record, NEXT_STEPS, *flags]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"open_clip_train failed:\n{done.stderr[-3000:]}")
    return torch.load(record, weights_only=True)


def logged_losses(folder: Path) -> list[float]:
    """The losses of the second epoch in the peer's own log, to five digits."""
    text = (folder / "logs/peer/out.log").read_text()
    return [float(loss) for loss in re.findall(r"Train Epoch: 1 .* Loss: ([0-9.]+)", text)]


def own_losses(run: Path, record: dict[str, Any], *, with_moments: bool) -> list[float]:
    """The losses of the imported run in `run` for the peer's batches."""
    session = Session(load(TrainConfig, run / CONFIG_FILE))
    assert session.state.step == STEPS, "the checkpoint is of the last step of the first epoch"
    if not with_moments:
        session.learner.optimizer.state.clear()
    losses = []
    for image, text in zip(record["image"], record["text"], strict=True):
        position = session.state.position
        batch = Loaded(
            views={"image": to_pixels(image), "text": text},
            keys=[str(row) for row in range(len(text))],
            positions=list(range(position, position + len(text))),
            state={"position": position + len(text)},
        )
        losses.append(session.advance(batch)["loss"].item())
    session.close("stopped", "the comparison is over")
    return losses


def to_pixels(image: Tensor) -> Tensor:
    """(B, 3, H, W) normalized float32 -> the uint8 that it came from, which clipx normalizes on the
    device."""
    std = torch.tensor(STD, dtype=torch.float64).view(1, 3, 1, 1)
    mean = torch.tensor(MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    levels = 255 * (image.double() * std + mean)
    if (levels - levels.round()).abs().max() > 1e-3:
        raise RuntimeError("the peer's images are not of 8 bits, so clipx cannot be given the same")
    return levels.round().to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--env", type=Path, default=ROOT / ".venv-peer")
    parser.add_argument("--check", action="store_true", help="fail where two losses differ")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        record = train_peer(arguments.env, folder)
        theirs = record["loss"]
        logged = logged_losses(folder)
        params = folder / "logs/peer/params.txt"
        checkpoint = folder / "logs/peer/checkpoints/epoch_1.pt"
        ours = {}
        for name in ("with moments", "without"):
            import_run(params, checkpoint, folder / name)
            is_whole = name == "with moments"
            ours[name] = own_losses(folder / name, record, with_moments=is_whole)
    table = Table("step", "open_clip", "in its log", "clipx", "difference", "without the moments")
    differences = []
    controls = []
    for number, loss in enumerate(theirs):
        own = ours["with moments"][number]
        control = ours["without"][number]
        differences.append(abs(own - loss))
        controls.append(abs(control - loss))
        cells = (f"{loss:.6f}", f"{logged[number]:.4f}", f"{own:.6f}")
        table.add_row(
            str(STEPS + 1 + number), *cells, f"{differences[-1]:.1e}", f"{controls[-1]:.1e}"
        )
    table.title = f"loss of the next steps after {STEPS} of open_clip's trainer, float32"
    Console(highlight=False, width=100).print(table)
    figures = {
        "next_loss": differences[0],
        "after_one_step": differences[1],
        "largest_difference": max(differences),
        "without_moments_after_one_step": controls[1],
        "versions": record["versions"],
    }
    print(json.dumps(figures))
    if arguments.check and not max(differences) <= BAR:  # also where one is not a number
        sys.exit(f"a loss differs by {max(differences):.1e}, more than {BAR:.0e}")
    if arguments.check and controls[1] <= BAR:
        sys.exit("the losses do not depend on the moments, so that nothing is shown of them")


if __name__ == "__main__":
    main()
