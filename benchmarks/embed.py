"""Samples per second of `clipx embed` beside clip-retrieval 2.45.0's `inference`, and beside the
forward pass of a training step.

    bash benchmarks/retrieval_env.sh                 # once: the peer in an environment of its own
    pip install 'clipx-train[bench,search]'                # once: the photographs, and Parquet
    clipx data demo --preset quick --out data/demo   # once: the other corpus
    python benchmarks/embed.py [--check] [--rounds 3] [--only photos]

Both read the same shards of pictures and captions with the same architecture and the same random
weights, embed both, and write float16 and metadata. The contestants take turns, each in a process
that lives on, so starting and loading are not timed. The peer gets the best of its settings by a
trial of each (data workers; scripted by torch.jit or not); clipx has the better of no
and one data worker. Figures are medians, and the embeddings of both are compared. Run nothing
beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import photos  # type: ignore[import] beside this file
import pyarrow.parquet as pq
import torch
from line_process import LineProcess  # type: ignore[import]
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

HERE = Path(__file__).parent
DEMO_MODEL = HERE.parent / "configs/model/demo_tiny.json"
BAR = 2.0
FORWARD_BATCH = 256
LEAST_COSINE = 0.99


@dataclass(frozen=True)
class Task:
    """shards: the first so many of the folder; has_json: whether samples have a .json member"""

    folder: Path
    model_json: dict[str, Any]
    image_key: str
    shards: int
    has_json: bool

    def paths(self) -> list[str]:
        return [str(path) for path in sorted(self.folder.glob("*.tar"))[: self.shards]]


def write_model(folder: Path, model_json: dict[str, Any]) -> None:
    """A model with random weights in open_clip's layout."""
    folder.mkdir()
    named = folder / "benchmark-initial.json"
    named.write_text(json.dumps(model_json))
    open_clip.add_model_config(named)
    torch.manual_seed(0)
    model = open_clip.create_model(named.stem)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_json}))


def race(task: Task, rounds: int, peer_python: str, folder: Path) -> dict[str, Any]:
    write_model(folder / "model", task.model_json)
    model = ["--model", str(folder / "model")]
    clipx = LineProcess("clipx", [sys.executable, str(HERE / "clipx_embed.py"), *model])
    key = ["--image-key", task.image_key, *(["--has-json"] if task.has_json else [])]
    peer = LineProcess("peer", [peer_python, str(HERE / "peer_embed.py"), *model, *key])
    precision = clipx.answer()["precision"]
    peer.answer()
    shards = task.paths()
    out = folder / "out"

    def timed(contestant: LineProcess, **settings: Any) -> float:
        shutil.rmtree(out, ignore_errors=True)
        return contestant.ask(shards=shards, out=str(out), **settings)["seconds"]

    # The peer gives each worker shards of its own, so a trial has all of them.
    timed(peer, workers=1, jit=False)  # prepares kernels
    peer_trials = {}
    for workers, jit in ((1, False), (2, False), (2, True)):
        peer_trials[workers, jit] = timed(peer, workers=workers, jit=jit)
    peer_workers, jit = min(peer_trials, key=lambda settings: peer_trials[settings])
    expected = peer_rows(out)
    timed(clipx, workers=0)
    clipx_trials = {}
    for workers in (0, 1):
        clipx_trials[workers] = timed(clipx, workers=workers)
    workers = min(clipx_trials, key=lambda count: clipx_trials[count])
    cosine = least_cosine(expected, clipx_rows(out))
    table = pq.read_table(next(out.glob("metadata/*.parquet")))
    captions = table.column("caption").to_pylist()[:FORWARD_BATCH]

    clipx_seconds = []
    peer_seconds = []
    forwards = []
    for _ in range(rounds):
        peer_seconds.append(timed(peer, workers=peer_workers, jit=jit))
        clipx_seconds.append(timed(clipx, workers=workers))
        forwards.append(clipx.ask(forward=captions)["seconds"])
    clipx.stop()
    peer.stop()

    count = len(expected["key"])
    rate = count / statistics.median(clipx_seconds)
    peer_rate = count / statistics.median(peer_seconds)
    return {
        "samples": count,
        "precision": precision,
        "clipx": rate,
        "clipx workers": workers,
        "peer": peer_rate,
        "peer workers": peer_workers,
        "peer jit": jit,
        "ratio": rate / peer_rate,
        "training forward": len(captions) / statistics.median(forwards),
        "least cosine": cosine,
    }


def peer_rows(folder: Path) -> dict[str, Any]:
    """Keys in order, with the rows of both kinds."""
    table = pq.read_table(next((folder / "metadata").glob("*.parquet")))
    return {
        "key": table.column("image_path").to_pylist(),
        "image": np.load(next((folder / "img_emb").glob("*.npy"))),
        "text": np.load(next((folder / "text_emb").glob("*.npy"))),
    }


def clipx_rows(folder: Path) -> dict[str, Any]:
    keys: list[str] = []
    for path in sorted((folder / "metadata").glob("*.parquet")):
        keys += pq.read_table(path).column("key").to_pylist()
    return {
        "key": keys,
        "image": np.concatenate([np.load(p) for p in sorted((folder / "img_emb").glob("*.npy"))]),
        "text": np.concatenate([np.load(p) for p in sorted((folder / "text_emb").glob("*.npy"))]),
    }


def least_cosine(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Of the two embeddings of a sample. Fails unless both have the same samples."""
    place = {key: row for row, key in enumerate(second["key"])}
    order = [place[key] for key in first["key"]]
    assert len(order) == len(second["key"]), "one has samples that the other has not"
    least = 1.0
    for kind in ("image", "text"):
        a = first[kind].astype(np.float64)
        b = second[kind][order].astype(np.float64)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        least = min(least, float(((a * b).sum(1) / lengths).min()))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", default=".venv-retrieval/bin/python")
    parser.add_argument("--only", choices=["photos", "demo"], help="one corpus of the two")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    arguments = parser.parse_args()
    if not Path(arguments.peer_python).exists():
        sys.exit("the peer's environment is missing: bash benchmarks/retrieval_env.sh")
    vit_b_32 = open_clip.get_model_config("ViT-B-32")
    assert vit_b_32 is not None, "open_clip has this architecture"
    demo = json.loads(DEMO_MODEL.read_text())
    tasks = {
        "photos": Task(
            photos.build(Path("build/loader-photos")), vit_b_32, "jpg", 2, has_json=False
        ),
        "demo": Task(Path("data/demo/train"), demo, "png", 2, has_json=True),
    }
    if arguments.only:
        tasks = {arguments.only: tasks[arguments.only]}
    figures = {}
    for name, task in tasks.items():
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = race(task, arguments.rounds, arguments.peer_python, Path(folder))
    report(figures)
    print(json.dumps(figures))
    missed = []
    for name, found in figures.items():
        if found["ratio"] < BAR:
            missed.append(f"{name}: {BAR}x")
        if found["clipx"] < found["training forward"]:
            missed.append(f"{name}: the rate of training's forward pass")
        if found["least cosine"] < LEAST_COSINE:
            missed.append(f"{name}: embeddings equal to the peer's")
    if arguments.check and missed:
        sys.exit(f"missed: {missed}")


def report(figures: dict[str, dict[str, Any]]) -> None:
    table = Table("corpus", *next(iter(figures.values())), title="samples a second, both towers")
    for name, found in figures.items():
        cells = []
        for value in found.values():
            cells.append(f"{value:,.4g}" if isinstance(value, float) else str(value))
        table.add_row(name, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
