"""examples/finetune on a tiny table and model: what is held out is never trained on, and the
results before and after are there."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ranks import ROOT, environment
from tiny_runs import COLORS, SHAPES, picture, png, train, write_config, write_corpus
from tiny_runs import write_test_set as write_classes

from clipx.config import load
from clipx.data.config import DataConfig
from clipx.training.config import TrainConfig

EXAMPLE = ROOT / "examples/finetune"
COLUMNS = ["picture", "title", "category", "product_id"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, a test set that it knows, and products: three pictures of each of 60."""
    folder = tmp_path_factory.mktemp("finetune")
    config = write_config(folder, write_corpus(folder / "corpus"), duration="10 steps")
    train(config)
    write_classes(folder / "classes")
    (folder / "products/pictures").mkdir(parents=True)
    with (folder / "products/products.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(COLUMNS)
        for n in range(180):
            product = n // 3
            color = list(COLORS)[product % 4]
            shape = SHAPES[product % 3]
            path = f"pictures/{n:03d}.png"
            (folder / "products" / path).write_bytes(png(picture(color, shape, n)))
            writer.writerow([path, f"{color} {shape}; number {product}", color, str(product)])
    return folder


def overrides(folder: Path) -> list[str]:
    """What the tiny model and table need instead of the demo's."""
    return [
        f"model.name={folder / 'model.json'}",
        f"model.initial.path={folder / 'run'}",
        f"evaluators.icons-before.path={folder / 'classes'}",
        f"run_dir={folder / 'tuned'}",
        f"data.decoded_cache={folder / 'decoded'}",
        "global_batch_size=24",
        "duration=2 epochs",
        "optim.lr=1e-3",
        "precision=fp32",
        "device=cpu",
    ]


@pytest.mark.slow
def test_the_example_tunes_a_model_and_shows_it_before_and_after(folder: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "run.py"), "--products", str(folder / "products")]
    done = subprocess.run(
        [*command, *overrides(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (folder / "tuned/results.jsonl").read_text().splitlines()
    first, *_, last = [json.loads(line) for line in lines]
    assert first["step"] == 0
    assert last["step"] > 0
    assert last["held-out-loss-loss"] < first["held-out-loss-loss"]
    assert "held-out-classes-zeroshot-top1" in first
    assert "icons-before-zeroshot-top1_interval" in last
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 7
    top1 = f"{100 * last['held-out-classes-zeroshot-top1']:.1f} %"
    assert top1 in rows[1]
    assert "minutes to draw" in done.stdout

    # The order of the samples is a function of the config, so that all that were read are known.
    data = load(TrainConfig, folder / "tuned/config.yaml").data
    steps = last["step"]
    seen = keys_of(data, 24 * steps)
    held_out = data.open(seed=0, part="held_out")
    kept_out = {held_out.key(*held_out.place_of(n)) for n in range(int(held_out.sizes.sum()))}
    assert first["held-out-retrieval-num_samples"] == len(kept_out) > 10
    assert len(seen) == 180 - len(kept_out)
    assert not seen & kept_out

    def products(keys: set[str]) -> set[int]:
        return {int(key[-7:-4]) // 3 for key in keys}

    assert not products(seen) & products(kept_out)


def keys_of(data: DataConfig, num_positions: int) -> set[str]:
    """Of the samples at the first positions of a run with seed 0."""
    corpus = data.open(seed=0)
    located = corpus.locate(np.arange(num_positions))
    places = zip(located.shard.tolist(), located.sample.tolist(), strict=True)
    return {corpus.key(*place) for place in places}


def test_the_table_of_the_example_is_readable(tmp_path: Path) -> None:
    """The config of the example fits what make_products.py writes, but for the model."""
    config = load(TrainConfig, EXAMPLE / "products.yaml")
    source = config.data.sources["products"]
    assert (source.separator, source.image_column) == (";", COLUMNS[0])
    assert config.data.caption_field == {COLUMNS[1]: 0.8, COLUMNS[2]: 0.2}
    assert config.data.held_out_by == COLUMNS[3]
    assert "COLUMNS = " + str(tuple(COLUMNS)).replace("'", '"') in (
        EXAMPLE / "make_products.py"
    ).read_text(encoding="utf-8")
