"""Mined negatives are those of a slow search, and a run trains on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators.color_encoder import ColorEncoder
from samples import solid, write_shard
from tiny_runs import metrics, train, write_config, write_corpus
from torch.nn import functional as F

from clipx import cli
from clipx.data.config import DataConfig
from clipx.mining import search
from clipx.mining.search import Rules, limits, mine
from clipx.mining.snapshot import Snapshot, take_snapshot
from clipx.types import UserError


def drawn(size: int, *, num_captions: int, seed: int = 0) -> Snapshot:
    """Some samples share captions, and some cannot be used."""
    generator = torch.Generator().manual_seed(seed)
    caption = torch.randint(0, num_captions, (size,), generator=generator)
    usable = torch.rand(size, generator=generator) > 0.15
    # Distinct captions in the order of the usable samples, as a snapshot numbers them.
    numbers: dict[int, int] = {}
    first = []
    for n in range(size):
        if usable[n] and int(caption[n]) not in numbers:
            numbers[int(caption[n])] = len(numbers)
            first.append(n)
    renumbered = torch.tensor([numbers.get(int(c), 0) for c in caption])
    text = F.normalize(torch.randn(len(first), 6, generator=generator).double(), dim=-1)
    image = text[renumbered] + torch.randn(size, 6, generator=generator).double()
    return Snapshot(F.normalize(image, dim=-1), usable, renumbered, text, torch.tensor(first))


def by_hand(snapshot: Snapshot, rules: Rules) -> list[list[int]]:
    """One sample, one candidate at a time."""
    found = []
    for n in range(len(snapshot.image)):
        if not snapshot.usable[n]:
            found.append([])
            continue
        own = int(snapshot.caption[n])
        positive = float(snapshot.image[n] @ snapshot.text[own])
        others = []
        for number, text in enumerate(snapshot.text):
            if number != own:
                others.append((float(snapshot.image[n] @ text), number))
        others.sort(reverse=True)
        row = []
        for similarity, number in others[rules.skip : rules.skip + rules.window]:
            is_far = True
            if rules.relative is not None:
                limit = (
                    rules.relative * positive if positive > 0 else (2 - rules.relative) * positive
                )
                is_far = similarity < limit
            if rules.margin is not None:
                is_far = is_far and similarity < positive - rules.margin
            if is_far and len(row) < rules.count:
                row.append(int(snapshot.first_sample[number]))
        found.append(row)
    return found


@pytest.mark.parametrize(
    "rules",
    [
        Rules(count=3, relative=None),
        Rules(count=3, window=4),
        Rules(count=2, skip=2, window=5, relative=0.9),
        Rules(count=4, window=500, relative=None, margin=0.3),
        Rules(count=4, window=6, relative=0.7, margin=0.1),
        Rules(count=8, skip=30, window=20, relative=None),
    ],
)
def test_negatives_are_those_of_a_slow_search(
    rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many blocks of both kinds."""
    monkeypatch.setattr(search, "ROWS", 7)
    monkeypatch.setattr(search, "COLUMNS", 5)
    snapshot = drawn(60, num_captions=40)
    mined = mine(snapshot, rules)
    expected = by_hand(snapshot, rules)
    for row, numbers in zip(mined.numbers.tolist(), expected, strict=True):
        assert row == numbers + [-1] * (rules.count - len(numbers))
    num_found = sum(map(len, expected))
    assert len(mined.negative) == len(mined.difference) == num_found
    assert len(mined.positive) == int(snapshot.usable.sum())
    assert mined.incomplete == sum(
        len(numbers) < rules.count and bool(snapshot.usable[n])
        for n, numbers in enumerate(expected)
    )


def test_the_statistics_count_each_candidate_once() -> None:
    snapshot = drawn(60, num_captions=40)
    mined = mine(snapshot, Rules(count=500, skip=3, window=20, relative=0.8, margin=0.1))
    num_rows = int(snapshot.usable.sum())
    assert mined.considered == 23 * num_rows
    assert mined.skipped["skip"] == 3 * num_rows
    assert mined.considered == sum(mined.skipped.values()) + len(mined.negative)
    assert min(mined.skipped.values()) > 0
    assert float(mined.difference.min()) > 0.1


def test_a_share_of_a_negative_similarity_lies_below_it() -> None:
    positive = torch.tensor([0.5, -0.5])
    found = limits(positive, Rules(relative=0.9, margin=0.2))
    torch.testing.assert_close(found["relative"], torch.tensor([0.45, -0.55]))
    torch.testing.assert_close(found["margin"], torch.tensor([0.3, -0.7]))
    assert limits(positive, Rules(relative=None)) == {}


COLORS = {"red": (255, 0, 0), "orange": (255, 160, 0), "yellow": (255, 255, 0), "blue": (0, 0, 255)}


def write_colors(folder: Path) -> Path:
    """Two samples of each color, of which the second red one has no picture."""
    samples: dict[str, dict[str, Any]] = {}
    for copy in (0, 1):
        for name, color in COLORS.items():
            samples[f"{name}{copy}"] = {"png": solid(color), "txt": name}
    samples["red1"] = {"txt": "red"}
    write_shard(folder / "0.tar", samples)
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_a_snapshot_has_each_sample_and_each_caption_once(tmp_path: Path, workers: int) -> None:
    vectors = {name: [x / math.hypot(*color) for x in color] for name, color in COLORS.items()}
    config = DataConfig(shards=str(write_colors(tmp_path)))
    done = []
    snapshot = take_snapshot(
        ColorEncoder(vectors), config, config.open(seed=0), workers=workers, advance=done.append
    )
    assert sum(done) == 8
    assert snapshot.caption[snapshot.usable].tolist() == [0, 1, 2, 3, 1, 2, 3]
    assert snapshot.usable.tolist() == [True] * 4 + [False] + [True] * 3
    assert snapshot.first_sample.tolist() == [0, 1, 2, 3]
    mined = mine(snapshot, Rules(count=2, relative=None))
    # The nearest of orange are yellow and red; of no color is it itself.
    assert mined.numbers[1].tolist() == mined.numbers[5].tolist() == [2, 0]
    assert mined.numbers[4].tolist() == [-1, -1]


def test_a_corpus_of_one_caption_has_no_negatives(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "0.tar", {f"k{n}": {"png": solid((9, 9, n)), "txt": "same"} for n in range(3)}
    )
    config = DataConfig(shards=str(tmp_path))
    encoder = ColorEncoder({"same": [1, 0, 0]})
    with pytest.raises(UserError, match="1 distinct captions in 3 usable samples"):
        take_snapshot(encoder, config, config.open(seed=0), workers=0, advance=lambda count: None)


# --- The command ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A corpus, a config, and the run of one step that made the model."""
    tmp_path = tmp_path_factory.mktemp("mining")
    corpus = write_corpus(tmp_path / "corpus", samples=48)
    config = write_config(tmp_path / "first", corpus, duration="1 steps")
    train(config)
    return {"corpus": corpus, "config": config, "run": tmp_path / "first/run"}


def test_a_run_trains_on_what_the_command_mines(
    run: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "negatives.safetensors"
    options = ["--negatives", "3", "--window", "10", "--relative", "1", "--workers", "0"]
    cli.main(["mine", str(run["run"]), str(run["config"]), "--out", str(out), *options])
    printed = capsys.readouterr().out
    assert "positive" in printed
    assert "train with data.negatives" in "".join(printed.splitlines()[-1:])

    settings = (f"data.negatives={out}", "data.num_negatives=2", "duration=4 steps")
    plain, with_them = tmp_path / "plain", tmp_path / "with"
    train(run["config"], f"run_dir={plain}", "duration=4 steps")
    train(run["config"], f"run_dir={with_them}", *settings)
    first, second = metrics(plain), metrics(with_them)
    assert [m["fingerprint"] for m in first] == [m["fingerprint"] for m in second]
    # Two of 48 further candidates to each image, so its loss is larger before anything is learned.
    assert second[0]["train/loss"] > first[0]["train/loss"] + 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--relative", "1.5"], "--relative 1.5 is not in (0, 1]"),
        (["--window", "3"], "--window 3 has fewer ranks than --negatives 4"),
        (["--skip", "-1"], "--skip -1 is below 0"),
        (["--margin", "3"], "--margin 3.0 is not in [0, 2]"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["mine", "model", "corpus", "--out", str(tmp_path / "out"), *arguments]
    with pytest.raises(SystemExit, match="2"):
        cli.main(command)
    assert message in capsys.readouterr().err


def test_rules_that_no_caption_passes_write_no_file(
    run: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "negatives"
    command = ["mine", str(run["run"]), str(run["corpus"]), "--out", str(out), "--margin", "2"]
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--workers", "0"])
    said = capsys.readouterr()
    assert "no caption passes these rules" in said.err
    assert "48 of 48 samples (100.0%) have fewer than 4 negatives" in said.out
    assert not out.exists()
