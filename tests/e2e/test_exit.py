"""The exit codes of ranks in whose process threads are still busy with torch: an abort (-6) after
all the work would make a scheduler run a finished job again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ranks import free_port
from tiny_runs import ROOT, environment, write_config


def ends(*arguments: str | Path) -> list[int]:
    """The exit codes of two ranks."""
    command = [sys.executable, str(ROOT / "tests/rank_with_thread.py"), *map(str, arguments)]
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment() | there | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    return [rank.wait(120) for rank in ranks]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (["duration=2 steps"], 0),
        pytest.param(["duration=40000 steps", "stop_after=0.5 s"], 75, marks=pytest.mark.slow),
        pytest.param(["global_batch_size=25"], 2, marks=pytest.mark.slow),
    ],
    ids=["finished", "stopped", "refused"],
)
def test_a_rank_ends_with_its_exit_code_whatever_its_threads_do(
    changes: list[str], code: int, pairs: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, pairs)
    assert ends("train", config, *changes) == [code, code]
