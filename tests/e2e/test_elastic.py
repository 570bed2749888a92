"""A run that is stopped and goes on with other numbers of processes and workers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from signal import SIGUSR1

import pytest
from ranks import start
from test_chaos import wait_until
from tiny_runs import metrics, write_config

STARTS = [(1, 0, 4), (3, 1, 8), (2, 2, 12)]
"""processes, workers of each, step at which it is stopped or done"""
LAST = 12


def has_logged(file: Path, lines: int) -> bool:
    return file.exists() and file.read_bytes().count(b"\n") >= lines


def test_it_trains_on_the_same_samples_with_the_same_losses(pairs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, pairs, duration=f"{LAST} steps", checkpoint_every="100 steps")
    undisturbed = start(["train", config], tmp_path / "log1")
    run = tmp_path / "elastic"
    for processes, workers, until in STARTS:
        log = tmp_path / f"log{processes}.{until}"
        command = ["train", config, f"run_dir={run}", f"data.workers={workers}"]
        ranks = start(command, log, world_size=processes)
        if until < LAST:
            wait_until(partial(has_logged, run / "metrics.jsonl", until), ranks)
            ranks.kill(processes - 1, by=SIGUSR1)  # the others learn of it from this one
        codes = ranks.wait()
        stopped = metrics(run)[-1]["step"] < LAST
        assert codes == [75 if stopped else 0] * processes, ranks.said
    assert undisturbed.wait() == [0], undisturbed.said
    found, expected = metrics(run), metrics(tmp_path / "run")
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for one, other in zip(expected, found, strict=True):
        assert one["fingerprint"] == other["fingerprint"]
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)
