"""Whoever starts two processes, they train one model, the one that torchrun's train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import ROOT, environment, metrics, train, weights_digest, write_config

STEPS = 10
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("short"), pairs, duration=f"{STEPS} steps")


@pytest.fixture(scope="module")
def by_torchrun(short: Path) -> Path:
    train(short, processes=2)
    return short.parent / "run"


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment() | variables
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=200, check=False
    )


def assert_same(run_dir: Path, other: Path) -> None:
    assert metrics(run_dir) == metrics(other)
    assert weights_digest(run_dir, STEPS) == weights_digest(other, STEPS)


def test_srun(short: Path, by_torchrun: Path, tmp_path: Path) -> None:
    """Two tasks of a step, by the variables that SLURM sets; tests/slurm/run.sh has real ones."""
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": "0",
    }
    command = [sys.executable, "-m", "clipx", "train", str(short), f"run_dir={tmp_path / 'run'}"]
    tasks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment() | step | {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    said = [task.communicate(timeout=200)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert_same(tmp_path / "run", by_torchrun)


@pytest.mark.slow
def test_accelerate_launch_with_copies(short: Path, by_torchrun: Path, tmp_path: Path) -> None:
    command = [*ACCELERATE, "--config_file", "launch/accelerate/ddp.yaml", "-m", "clipx", "train"]
    done = run([*command, str(short), f"run_dir={tmp_path / 'run'}"], ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", by_torchrun)


@pytest.mark.slow
def test_accelerate_launch_with_shards(short: Path, by_torchrun: Path, tmp_path: Path) -> None:
    """FSDP2 adds gradients up in another order than DDP: the same samples, nearly the same loss."""
    command = [*ACCELERATE, "--config_file", "launch/accelerate/fsdp2.yaml", "-m", "clipx", "train"]
    done = run([*command, str(short), f"run_dir={tmp_path / 'run'}"], ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "FSDP2" in done.stderr
    for mine, other in zip(metrics(tmp_path / "run"), metrics(by_torchrun), strict=True):
        assert mine["fingerprint"] == other["fingerprint"]
        assert mine["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)


def test_accelerate_launch_that_connects_nobody_is_refused(short: Path, tmp_path: Path) -> None:
    """`--cpu` starts one process without a rank, whatever number of processes was asked for."""
    command = [*ACCELERATE, "--cpu", "--num_processes", "2", "-m", "clipx", "train"]
    done = run([*command, str(short), f"run_dir={tmp_path / 'run'}"])
    assert done.returncode != 0
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu" in done.stderr
    assert not (tmp_path / "run/checkpoints").exists()
