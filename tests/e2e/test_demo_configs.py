"""Every run of configs/run trains, on a small corpus in the place of the demo corpus."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
from ranks import environment
from tiny_runs import COLORS, SHAPES, clipx_command, picture, png, write_tar

ROOT = Path(__file__).parents[2]
RUNS = sorted(path.stem for path in (ROOT / "configs/run").glob("demo_*.yaml"))
NEEDS_A_DOWNLOAD = {"demo_lit"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `configs` beside a corpus of 256 pairs and test sets with two splits."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "configs", folder / "configs")
    members: dict[str, bytes] = {}
    for n in range(256):
        color = list(COLORS)[n % len(COLORS)]
        members[f"{n:04d}.png"] = png(picture(color, SHAPES[n % len(SHAPES)], n))
        name = f"{n // 2} a {color} thing"
        about = {"captions": [name, f"a picture of {name}"], "label": name}
        members[f"{n:04d}.json"] = json.dumps(about).encode()
    write_tar(folder / "data/demo/train/00000.tar", members)
    for name in ("emoji-groups", "mnist", "emoji-fluent", "flags-circle", "icons-phosphor"):
        write_classes(folder / "data/demo/eval" / name)
    for name in ("icons-phosphor-common", "icons-phosphor-styles"):
        write_classes(folder / "data/demo/eval" / name)
    captions: dict[str, bytes] = {}
    for n in range(8):
        captions[f"{n:03d}.png"] = png(picture("red", "bar", n))
        captions[f"{n:03d}.txt"] = f"{n} red bars".encode()
    write_tar(folder / "data/demo/eval/emoji-fluent-retrieval/test/0.tar", captions)
    (folder / "data/demo/eval/emoji-fluent-retrieval/test/nshards.txt").write_text("1\n")
    return folder


def write_classes(folder: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        members: dict[str, bytes] = {}
        for n in range(first, first + 24):
            members[f"{n:03d}.png"] = png(picture(list(COLORS)[n % 4], "bar", n))
            members[f"{n:03d}.cls"] = str(n % 4).encode()
        write_tar(folder / split / "0.tar", members)
        (folder / split / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(COLORS) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")


@pytest.fixture(scope="module")
def teacher(folder: Path) -> None:
    """The run that demo_distill.yaml learns from."""
    train(folder, "demo_tiny", "duration=2 steps", "evaluators={}")


def train(folder: Path, name: str, *settings: str) -> None:
    few = ("optim.warmup=1 steps", "global_batch_size=16", "log_every=10 steps")
    done = subprocess.run(
        clipx_command("train", f"configs/run/{name}.yaml", *few, *settings),
        cwd=folder,  # paths in configs are relative to it
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("teacher")
@pytest.mark.parametrize("name", [name for name in RUNS if name not in NEEDS_A_DOWNLOAD])
def test_a_method_trains_and_is_measured(folder: Path, name: str) -> None:
    # A queue must not be longer than the corpus of 256.
    shorter = {"demo_momentum": "objective.queue=64", "demo_momentum_pairs": "pool.queue=64"}
    settings = [shorter[name]] if name in shorter else []
    run = folder / "measured" / name
    train(folder, name, f"run_dir={run}", "duration=60 steps", *settings)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/loss"] for line in lines]
    assert len(losses) == 6
    # Losses of so few steps need not fall: at first a queue fills, and warmups are short.
    assert all(map(math.isfinite, losses))
    if name == "demo_siamese":  # texts alone, which the test sets do not measure
        return
    (result,) = map(json.loads, (run / "results.jsonl").read_text().splitlines())
    assert any(key.endswith("top1") for key in result)
