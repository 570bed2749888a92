"""Whoever starts two processes, they train one model: `accelerate launch` with the files of
launch/accelerate, as their heads tell people to, and srun (tests/slurm/run.sh has the real one)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT, environment, start
from tiny_runs import metrics, train, weights_digest, write_config

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
TITLES = {"ddp": "2 x cpu (DDP)", "fsdp2": "2 x cpu (FSDP2)"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TITLES)
def test_accelerate_launches_training_on_cpus(kind: str, pairs: Path, tmp_path: Path) -> None:
    """The losses are those of one process."""
    config = write_config(tmp_path, pairs, duration="6 steps", ema=0.9, micro_batch_size=4)
    file = ROOT / "launch" / "accelerate" / f"{kind}.yaml"
    command = [*ACCELERATE, "--config_file", str(file)]
    done = subprocess.run(
        [*command, "-m", "clipx", "train", str(config), f"run_dir={tmp_path / kind}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment() | {"ACCELERATE_USE_CPU": "true"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(TITLES[kind]) == 1, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    train(config)
    pairs_of_lines = zip(metrics(tmp_path / "run"), metrics(tmp_path / kind), strict=True)
    for one, two in pairs_of_lines:
        assert one["fingerprint"] == two["fingerprint"]
        for key in ("loss", "grad_norm", "scale"):
            assert two[f"train/{key}"] == pytest.approx(one[f"train/{key}"], rel=1e-4), key


def test_srun(pairs: Path, tmp_path: Path) -> None:
    """Two tasks of a step, by SLURM's variables: the bits of torchrun's variables."""
    config = write_config(tmp_path, pairs, duration="6 steps")
    variables = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": "0",
    }
    command = ["train", config, f"run_dir={tmp_path / 'srun'}"]
    tasks = []
    for task in ("0", "1"):
        place = {"SLURM_PROCID": task, "SLURM_LOCALID": task}
        tasks.append(start(command, tmp_path / f"log{task}", **variables, **place))
    for task in tasks:
        assert task.wait() == [0], task.said
    train(config, processes=2)
    assert metrics(tmp_path / "srun") == metrics(tmp_path / "run")
    assert weights_digest(tmp_path / "srun", 6) == weights_digest(tmp_path / "run", 6)


@pytest.mark.slow
def test_accelerate_launch_that_connects_nobody_is_refused(pairs: Path, tmp_path: Path) -> None:
    """`--cpu` starts one process without a rank, whatever number of processes was asked for.
    tests/distributed/test_launcher.py refuses the variables that it sets."""
    config = write_config(tmp_path, pairs)
    command = [*ACCELERATE, "--cpu", "--num_processes", "2", "-m", "clipx", "train", str(config)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
    )
    assert done.returncode != 0
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu" in done.stderr
    assert not (tmp_path / "run/checkpoints").exists()
