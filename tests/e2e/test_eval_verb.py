"""`clipx eval` and `clipx compare` as a user calls them, on any number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import run_clipx, train, write_config, write_test_sets

COUNT = 149  # prime: no number of processes divides it, and the last batch is short


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Classes, and pictures with one to three captions."""
    return write_test_sets(tmp_path_factory.mktemp("sets"), COUNT, "a {c} bar\nthe {c} one")


@pytest.fixture(scope="module")
def run(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_config(tmp_path_factory.mktemp("trained"), pairs)
    train(config, "duration=20 steps")
    return config.parent / "run"


@pytest.fixture(scope="module")
def evaluated(
    run: Path, sets: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """Folders of results, by the number of processes."""
    out, folders = tmp_path_factory.mktemp("results"), {}
    chosen = [word for path in sets for word in ("--set", path)]
    for processes in (1, 3):
        folders[processes] = out / str(processes)
        done = run_clipx("eval", run, *chosen, "--out", folders[processes], processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("zeroshot-top1") == 1, "one table, not one a rank"
    return folders


def contents(folder: Path) -> dict[str, Any]:
    texts = [p for p in folder.rglob("*") if p.suffix in (".json", ".jsonl")]
    found: dict[str, Any] = {p.relative_to(folder).as_posix(): p.read_text() for p in texts}
    for path in (folder / "samples").iterdir():
        with np.load(path) as arrays:
            found[path.name] = {name: arrays[name].tolist() for name in arrays.files}
    return found


def test_one_and_three_processes_leave_the_same_results(evaluated: dict[int, Path]) -> None:
    reference = contents(evaluated[1])
    lines = [json.loads(line) for line in reference["results.jsonl"].splitlines()]
    assert {line["num_samples"] for line in lines} == {COUNT}
    assert len(reference["classes.npz"]["keys"]) == COUNT
    (top1,) = [line for line in lines if line["metric"] == "zeroshot-top1"]
    assert top1["low"] < top1["value"] < top1["high"]
    assert top1["value"] * COUNT == pytest.approx(round(top1["value"] * COUNT), abs=1e-9)
    for processes, folder in evaluated.items():
        assert contents(folder) == reference, processes


def test_a_model_is_not_distinguishable_from_itself(evaluated: dict[int, Path]) -> None:
    done = run_clipx("compare", evaluated[1], evaluated[3], "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {record["set"] for record in records} == {"classes", "captions"}
    assert not any(record["distinguishable"] for record in records), records


def test_a_set_that_one_process_cannot_read_ends_all(run: Path, tmp_path: Path) -> None:
    done = run_clipx("eval", run, "--set", tmp_path / "nowhere", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("clipx: test set") == 1, done.stderr
