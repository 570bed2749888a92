"""`clipx embed` killed again and again, and on several processes: the same bytes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from ranks import start
from tiny_runs import run_clipx

KILLS = 10


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def embed(model: Path, pairs: Path, out: Path, *, processes: int = 1) -> None:
    done = run_clipx(*arguments(model, pairs, out), processes=processes)
    assert done.returncode == 0, done.stderr


def arguments(model: Path, pairs: Path, out: Path) -> list[str | Path]:
    settings = ["--part-size", "4", "--precision", "fp32", "data.workers=0"]
    return ["embed", model, pairs, "--out", out, *settings]


def kill_after_a_part(model: Path, pairs: Path, out: Path, log: Path, processes: int) -> None:
    """SIGKILL as soon as there is one more part."""
    before = len(list((out / "metadata").glob("*.parquet")))
    ranks = start(arguments(model, pairs, out), log, world_size=processes)
    try:
        deadline = time.monotonic() + 60
        while len(list((out / "metadata").glob("*.parquet"))) <= before:
            assert time.monotonic() < deadline
            assert ranks.running(), ranks.said
            time.sleep(0.0005)
    finally:
        ranks.kill()
    assert set(ranks.wait()) == {-signal.SIGKILL}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_ten_times_it_has_the_same_bytes(
    undisturbed: Path, pairs: Path, tmp_path: Path, processes: int
) -> None:
    embed(undisturbed, pairs, tmp_path / "whole")
    out = tmp_path / "killed"
    for kill in range(KILLS):
        kill_after_a_part(undisturbed, pairs, out, tmp_path / f"log{kill}", processes)
    assert len(list((out / "metadata").glob("*.parquet"))) < 24, "not yet complete"
    embed(undisturbed, pairs, out, processes=processes)
    assert contents(out) == contents(tmp_path / "whole")


def test_two_processes_share_the_parts(undisturbed: Path, pairs: Path, tmp_path: Path) -> None:
    embed(undisturbed, pairs, tmp_path / "one")
    embed(undisturbed, pairs, tmp_path / "two", processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
