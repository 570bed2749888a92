"""launch/slurm.sbatch on a real SLURM cluster of two hosts on this machine, where that can be."""

from __future__ import annotations

import subprocess

import pytest
from tiny_runs import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_runs_survive_preemption_requeue_and_the_loss_of_a_host() -> None:
    """By torchrun, srun and accelerate, each bit for bit as a run that nothing disturbed."""
    command = ["bash", "tests/slurm/run.sh"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    print(done.stdout)
    if "skipped" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
