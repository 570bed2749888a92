"""`accelerate launch` with the files of launch/accelerate, as their heads tell people to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from training import ROOT, environment, metrics, train, write_config

TITLES = {"ddp": "2 x cpu (DDP)", "fsdp2": "2 x cpu (FSDP2)"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TITLES)
def test_accelerate_launches_training_on_cpus(kind: str, pairs: Path, tmp_path: Path) -> None:
    """The losses are those of one process."""
    config = write_config(tmp_path, pairs, duration="6 steps", ema=0.9, micro_batch_size=4)
    file = ROOT / "launch" / "accelerate" / f"{kind}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
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
