"""Three new users, and what each of them sees on the screen: a researcher who comes from open_clip,
an engineer with pictures and a table, a student in a notebook."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peer_runs import write_run
from ranks import ROOT, environment
from screens import on_terminal
from tiny_runs import COLORS, SHAPES, metrics, picture, png, train, write_config, write_corpus

pytestmark = pytest.mark.slow
WIDE = {"COLUMNS": "300"}  # workers of pytest-xdist have another number


def screen(*arguments: str | Path, code: int = 0) -> str:
    """What `clipx ...` leaves on a terminal that is wide enough for the paths of tests."""
    found, lines, _ = on_terminal(arguments, width=300, environment=environment() | WIDE)
    text = "\n".join(lines) + "\n"
    assert found == code, text
    return text


def test_a_researcher_from_open_clip_is_training_after_three_commands(tmp_path: Path) -> None:
    # Their own command line, word by word: nothing is trained, and each flag has its setting.
    flags = ["--train-data", "data/{00..02}.tar", "--batch-size", "6", "--lr", "1e-3"]
    flags += ["--precision", "amp_bf16", "--epochs", "4", "--local-loss", "--zeal", "3"]
    shown = screen("train", *flags, code=2)
    for line in (
        "--train-data data/{00..02}.tar  ->  data.shards=data/{00..02}.tar",
        "--batch-size 6  ->  global_batch_size=6 (over all processes",
        "--lr 1e-3  ->  optim.lr=1e-3",
        "--precision amp_bf16  ->  precision=bf16",
        "--epochs 4  ->  duration='4 epochs'",
        "--local-loss  ->  pools always compare",
        "--zeal 3  ->  no setting of this name",
    ):
        assert line in shown

    # Their run: its flags and its checkpoint become a run of clipx.
    params, checkpoint = write_run(tmp_path, epochs=2)
    run = tmp_path / "run"
    shown = screen(
        "import", "open_clip", "--params", params, "--checkpoint", checkpoint, "--out", run
    )
    config = run / "train.yaml"
    assert f"clipx train {config}" in shown, "the next command is on the screen"
    settings = yaml.safe_load(config.read_text())
    assert settings["global_batch_size"] == 6
    assert settings["optim"]["lr"] == 1e-3

    shown = screen("train", config, "data.streams=6")
    assert f"resumed from {run}/checkpoints/step_00000003 at step 3" in shown
    assert "step 4" in shown
    assert "finished 6 steps in " in shown
    assert "val-loss " in shown
    assert f"next: clipx report {run}" in shown
    assert [record["step"] for record in metrics(run)] == [4, 5, 6]

    # A mistake that a flag's name invites.
    shown = screen("train", config, "batch_size=64", code=2)
    assert "global_batch_size=64" in shown


def test_an_engineer_with_pictures_and_a_table_gets_a_better_model(tmp_path: Path) -> None:
    base = write_config(tmp_path / "base", write_corpus(tmp_path / "corpus"), duration="10 steps")
    train(base)
    with (tmp_path / "products.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "title", "category"])
        for n in range(200):
            color = list(COLORS)[n % 4]
            shape = SHAPES[n % 3]
            (tmp_path / f"{n}.png").write_bytes(png(picture(color, shape, n)))
            writer.writerow([f"{n}.png", f"{color} {shape}, number {n}", color])

    # The table alone is not a corpus that a verb takes; the screen shows what is.
    shown = screen("data", "verify", tmp_path / "products.csv", code=2)
    assert "{sources: {pairs: {name: table, path: " in shown

    run = tmp_path / "tuned"
    settings = [
        f"data.sources.products.path={tmp_path / 'products.csv'}",
        f"run_dir={run}",
        f"model.name={tmp_path / 'base/model.json'}",
        f"model.initial.path={tmp_path / 'base/run'}",
        "data.workers=0",
        "global_batch_size=24",
        "optim.lr=1e-3",
        "precision=fp32",
        "device=cpu",
    ]
    finetune = ROOT / "configs/run/finetune.yaml"
    shown = screen("train", finetune, *settings)
    (share,) = [line for line in shown.splitlines() if "are held out" in line]
    num_held_out = int(share.split(" of 200 samples")[0].split()[-1])
    assert 8 <= num_held_out <= 35
    assert "held-out-classes-zeroshot-top1" in shown
    assert f"next: clipx report {run}" in shown
    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert results[0]["step"] == 0
    assert results[0]["held-out-retrieval-num_samples"] == num_held_out
    assert results[-1]["held-out-loss-loss"] < results[0]["held-out-loss-loss"]

    # Then the two things that they came for: numbers again at any time, and search.
    shown = screen("eval", run)
    accuracy = results[-1]["held-out-classes-zeroshot-top1"]
    assert f"{100 * accuracy:.2f}%" in shown
    screen("embed", run, run / "config.yaml", "--out", tmp_path / "embedded")
    shown = screen("search", tmp_path / "embedded", "a red square")
    assert shown.count(".png") >= 3


def test_a_student_follows_one_pair_to_a_gradient(tmp_path: Path) -> None:
    """The cells of the notebook in a Python of their own, from the folder of the examples."""
    notebook = json.loads((ROOT / "examples/one_pair.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text("def display(*_): pass\n" + "\n".join(cells), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=ROOT / "examples",
        env=environment(),
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a gray cat" in done.stdout
    compared = dict(re.findall(r"by hand (\S+) (?:clipx|autograd) (\S+)", done.stdout))
    assert len(compared) == 2, "the loss, and the gradient of the temperature"
    for by_hand, by_clipx in compared.items():
        assert float(by_hand) == pytest.approx(float(by_clipx), rel=1e-4)
