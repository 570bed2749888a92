"""Whole runs on a GPU."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    ROOT,
    clipx_command,
    environment,
    metrics,
    write_config,
    write_corpus,
    write_test_set,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WITH_GPU = {k: v for k, v in environment().items() if k != "CUDA_VISIBLE_DEVICES"}


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        clipx_command(*arguments),
        cwd=ROOT,
        env=WITH_GPU,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str], *, code: int = 0) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


def gpu_config(folder: Path, corpus: Path, **changes: Any) -> Path:
    return write_config(folder, corpus, device="cuda", **changes)


SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bf16"},
    "float16, with scaling": {"precision": "fp16"},
    "TF32, workers": {"precision": "tf32", "data": {"workers": 2}},
    "compiled": {"precision": "bf16", "compile": "towers"},
    "micro-batches, recomputed": {"micro_batch_size": 8, "grad_checkpointing": True},
    "averages, a queue, Muon": {"ema": 0.9, "pool": {"queue": 48}, "optim": {"kind": "muon"}},
    "sigmoid, LAMB": {"loss": {"name": "sigmoid"}, "optim": {"kind": "lamb"}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_learns_and_evaluates(name: str, corpus: Path, tmp_path: Path) -> None:
    changes = dict(SETTINGS[name])
    data = {"shards": str(corpus), "workers": 0, "streams": 12} | changes.pop("data", {})
    optim = {"lr": 1e-3, "warmup": "4 steps"} | changes.pop("optim", {})
    test_set = write_test_set(tmp_path / "colors")
    evaluator = {"name": "zero_shot", "path": str(test_set), "every": "20 steps"}
    evaluators = {"evaluators": {"colors": evaluator}}
    config = gpu_config(tmp_path, corpus, data=data, optim=optim, **evaluators, **changes)
    said = end(start("train", config))
    assert "failed" not in said, said
    records = metrics(tmp_path / "run")
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), losses
    assert "colors" in end(start("eval", tmp_path / "run"))


def test_a_run_that_is_stopped_goes_on_with_the_next_sample(corpus: Path, tmp_path: Path) -> None:
    """The fingerprints are equal, and the losses to the rounding of sums in another order."""
    whole = gpu_config(tmp_path / "whole", corpus)
    end(start("train", whole))
    halves = gpu_config(tmp_path / "halves", corpus, duration="40 steps")
    log = tmp_path / "halves" / "run" / "metrics.jsonl"
    process = start("train", halves)
    while not (log.exists() and len(log.read_text().splitlines()) >= 5):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    end(process, code=75)
    assert len(metrics(log.parent)) < 40
    end(start("train", halves))
    found, expected = (metrics(tmp_path / name / "run") for name in ("halves", "whole"))
    assert [r["fingerprint"] for r in found] == [r["fingerprint"] for r in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3)
