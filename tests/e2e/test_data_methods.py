"""Runs with labels, with pairs of images or texts, and with mined negatives: on two processes as on
one, and killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import (
    kill_when,
    metrics,
    picture,
    png,
    steps_logged,
    train,
    weights_digest,
    write_config,
    write_tar,
)

from clipx import cli
from clipx.data.config import DataConfig
from clipx.data.negatives import write_negatives

LAST = 12
COLORS = ("red", "green", "blue", "gray")
# Two crops each, so that draws of both images matter.
IMAGES = ["objective={name: siamese, of: images}", "data.pair_images=[a, b]"]
IMAGES += ["data.crop_scale=[0.5, 1]"]
TEXTS = ["objective={name: siamese, of: texts}", "data.pair_texts=[title, long]"]
METHODS = {
    "labels": ["loss={name: multi_positive, concept: label}", "data.label_field=cls"],
    "siamese images": [*IMAGES, "pool.queue=30"],
    "siamese texts": [*TEXTS, "loss={name: infonce, false_negatives: both}", "pool.queue=30"],
    "siamese labels": [
        *IMAGES,
        "loss={name: multi_positive, concept: label}",
        "data.label_field=kind",
    ],
    "margin": [
        *IMAGES,
        "data.pair_images=[a, c]",
        "loss={name: margin, margin: 0.5}",
        "data.label_field=is_match",
        "optim.lr=3e-3",
    ],
    "groups": [
        "loss={name: multi_positive, concept: label}",
        "data.label_field=cls",
        "data.group={by: label, size: 3}",
    ],
    "mined negatives": ["data.negatives=CORPUS/negatives", "data.num_negatives=2"],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each sample has a pair of images, a pair of texts, a picture with a caption, and the labels
    `cls`, `kind` and `is_match`, whether a and c have the same color."""
    folder = tmp_path_factory.mktemp("pairs")
    for shard in range(4):
        members: dict[str, bytes] = {}
        for n in range(24 * shard, 24 * shard + 24):
            color = COLORS[n % 4]
            members[f"{n:04d}.png"] = png(picture(color, "bar", n))
            members[f"{n:04d}.a.png"] = png(picture(color, "bar", 100 + n))
            members[f"{n:04d}.b.png"] = png(picture(color, "pole", 200 + n))
            other = color if n % 3 > 0 else COLORS[(n + 1) % 4]
            members[f"{n:04d}.c.png"] = png(picture(other, "bar", 300 + n))
            members[f"{n:04d}.txt"] = f"{n} a {color} bar".encode()
            members[f"{n:04d}.title.txt"] = f"{n} {color}".encode()
            members[f"{n:04d}.long.txt"] = f"a bar in {color}, number {n}".encode()
            members[f"{n:04d}.cls"] = str(n % 4).encode()
            fields = {"kind": color, "is_match": n % 3 > 0}
            members[f"{n:04d}.json"] = json.dumps(fields).encode()
        write_tar(folder / f"{shard}.tar", members)
    # Some samples have fewer than three, and some none.
    numbers = np.random.default_rng(0).integers(-1, 96, (96, 3))
    numbers[::7] = -1
    digest = DataConfig(shards=str(folder)).open(seed=0).digest
    write_negatives(folder / "negatives", numbers, corpus_digest=digest, about={})
    return folder


def settings_of(method: str, corpus: Path) -> list[str]:
    return [text.replace("CORPUS", str(corpus)) for text in METHODS[method]]


def config_of(folder: Path, corpus: Path) -> Path:
    return write_config(folder, corpus, duration=f"{LAST} steps", checkpoint_every="4 steps")


@pytest.mark.parametrize(
    "method",
    [m if m == "siamese images" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_two_processes_in_micro_batches_are_as_one(
    corpus: Path, tmp_path: Path, method: str
) -> None:
    config = config_of(tmp_path, corpus)
    one, two = tmp_path / "one", tmp_path / "two"
    settings = settings_of(method, corpus)
    train(config, f"run_dir={one}", *settings)
    train(config, f"run_dir={two}", *settings, "micro_batch_size=4", processes=2)
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert first["fingerprint"] == second["fingerprint"]
        for key in ("train/loss", "train/grad_norm"):
            assert second[key] == pytest.approx(first[key], rel=5e-3, abs=1e-5), first["step"]
    losses = [record["train/loss"] for record in metrics(one)]
    assert sum(losses[-3:]) < sum(losses[:3]), "it did learn"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_bit_by_bit(corpus: Path, tmp_path: Path, method: str) -> None:
    config = config_of(tmp_path, corpus)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    settings = settings_of(method, corpus)
    train(config, f"run_dir={undisturbed}", *settings)
    overrides = (f"run_dir={killed}", *settings)
    kill_when(lambda: steps_logged(killed) >= 6, tmp_path / "log", config, *overrides)
    train(config, *overrides)
    assert weights_digest(killed, LAST) == weights_digest(undisturbed, LAST)
    assert metrics(killed) == metrics(undisturbed)


def refusal(config: Path, capsys: pytest.CaptureFixture[str], *settings: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(config), *settings])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (METHODS["labels"][:1], "set data.label_field to the field that has them"),
        ([*IMAGES, "loss=margin"], "set data.label_field to the field that has them"),
        (
            [*METHODS["labels"][:1], "data.label_field=class"],
            "data.label_field: none of 96 samples looked at can be used; the first: no class",
        ),
        (IMAGES[:1], "the objective compares pairs of images; set data.pair_images"),
        ([*IMAGES[:1], *TEXTS[1:]], "the objective compares pairs of images; set data.pair_images"),
        (IMAGES[1:2], "data.pair_images: the objective takes no pairs"),
        ([*IMAGES[:1], "data.pair_images=[a, d]"], "data.pair_images: none of 96 samples"),
        ([*IMAGES, "loss={name: multi_positive}"], "the loss compares samples by caption"),
        (
            [*IMAGES, "cache_features=cache", "model.locked=[visual.transformer]"],
            "cache_features keeps no pairs",
        ),
        (["data.negatives=CORPUS/0.tar"], "data.negatives CORPUS/0.tar cannot be read"),
        (["data.num_negatives=2"], "data.num_negatives needs data.negatives"),
        (
            ["data.group={size: 5}"],
            "24 is not a multiple of data.group.size 5; the nearest",
        ),
        (["data.group={size: 2}"], "data.group.by label needs data.label_field"),
        ([*METHODS["groups"], "data.repeat={shards: 2}"], "leave out weights and repeat"),
        ([*IMAGES, "data.group={by: caption}"], "the objective reads no captions; group by label"),
        ([*METHODS["mined negatives"], "loss=sigmoid"], "the loss takes no mined negatives"),
        (
            [*METHODS["mined negatives"], "objective=slip"],
            "the objective takes no mined negatives",
        ),
        (
            [METHODS["mined negatives"][0], "data.num_negatives=4"],
            "data.num_negatives 4: the file of data.negatives has 3",
        ),
    ],
)
def test_what_the_data_lack_is_named_before_the_first_step(
    corpus: Path,
    tmp_path: Path,
    settings: list[Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = [text.replace("CORPUS", str(corpus)) for text in settings]
    said = refusal(config_of(tmp_path, corpus), capsys, *settings)
    assert message.replace("CORPUS", str(corpus)) in said
