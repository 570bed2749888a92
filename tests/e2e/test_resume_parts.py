"""A run that was stopped goes on bit by bit with everything that it carries along: averages of the
weights, a queue of past rows, the scaler of float16, micro-batches, dropped patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import MODEL, metrics, train, write_config

from clipx import cli
from clipx.checkpoints import format as checkpoints

PATCHES = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"patch_dropout": 0.5}}
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"ema": 0.9, "pool": {"queue": 40}, "micro_batch_size": 6},
    "bf16": {"precision": "bf16", "ema": 0.9, "pool": {"queue": 17}},
    "fp16": {"precision": "fp16", "micro_batch_size": 6, "grad_checkpointing": True},
    "sigmoid": {"loss": "sigmoid", "ema": 0.99, "micro_batch_size": 12},
    "muon": {"optim": {"kind": "muon", "lr": 1e-3, "warmup": "2 steps"}, "ema": 0.9},
}
LAST = 9


def run(folder: Path, corpus: Path, name: str, *durations: int) -> Path:
    """Started anew for each duration; the schedule is one that a longer run does not change."""
    changes = {"log_every": "2 steps", "checkpoint_every": "4 steps"} | SETTINGS[name]
    optim = {"lr": 1e-3, "warmup": "2 steps", "schedule": {"kind": "constant"}}
    changes["optim"] = optim | changes.get("optim", {})
    config = write_config(folder, corpus, **changes)
    (folder / "model.json").write_text(json.dumps(PATCHES))
    for steps in durations:
        cli.main(["train", str(config), f"duration={steps} steps"])
    return folder / "run"


def equal(a: Any, b: Any) -> bool:
    """Of nests of dicts, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def saved(run: Path) -> checkpoints.LoadedCheckpoint:
    return checkpoints.load(run / "checkpoints" / f"step_{LAST:08d}")


@pytest.mark.parametrize(
    "name", [n if n != "bf16" else pytest.param(n, marks=pytest.mark.slow) for n in SETTINGS]
)
def test_a_stopped_run_is_bit_identical(name: str, pairs: Path, tmp_path: Path) -> None:
    """Stopped between two log lines, so that what is counted from line to line is tested too."""
    once = saved(run(tmp_path / "once", pairs, name, LAST))
    stops = (3, 5) if name == "fp32" else (5,)
    stopped = saved(run(tmp_path / "stopped", pairs, name, *stops, LAST))
    assert stopped.state == once.state
    for part in ("optimizer", "random", "scaler", "objective", "ema"):
        assert equal(vars(stopped.training)[part], vars(once.training)[part]), part
    assert equal(stopped.weights, once.weights)
    lines = [metrics(tmp_path / which / "run") for which in ("once", "stopped")]
    by_step = [{line["step"]: line for line in found} for found in lines]
    for step in (2, 4, 6, 8, LAST):
        assert by_step[0][step] == by_step[1][step]
    for part, is_set in {
        "ema": "ema" in SETTINGS[name],
        "objective": "pool" in SETTINGS[name],
        "scaler": name == "fp16",
    }.items():
        assert bool(vars(once.training)[part]) == is_set, part


def test_how_a_step_is_computed_may_change_and_what_is_computed_may_not(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, pairs, "fp32", 2)
    config = str(tmp_path / "config.yaml")
    how = ["micro_batch_size=6", "grad_checkpointing=true", "parallel=ddp", "pool.kind=local"]
    cli.main(["train", config, "duration=3 steps", *how])
    assert [line["step"] for line in metrics(folder)] == [2, 3]
    with pytest.raises(SystemExit):
        cli.main(["train", config, "duration=4 steps", "ema=0.5", "pool.queue=3", *how])
    assert "ema, pool.queue differ" in capsys.readouterr().err.replace(
        "pool.queue, ema", "ema, pool.queue"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("ddp", "fsdp2"), ("fsdp2", "ddp")])
def test_a_run_changes_how_it_is_shared_out(
    first: str, second: str, pairs: Path, tmp_path: Path
) -> None:
    """Two processes, then two others; against one process."""
    once = saved(run(tmp_path / "once", pairs, "fp32", LAST))
    folder = run(tmp_path / "shared", pairs, "fp32")
    config = folder.parent / "config.yaml"
    for kind, steps in ((first, 4), (second, LAST)):
        done = train(config, f"parallel={kind}", f"duration={steps} steps", processes=2)
        assert {"ddp": "DDP", "fsdp2": "FSDP2"}[kind] in done.stderr
    shared = saved(folder)
    assert shared.state.fingerprint == once.state.fingerprint
    for name, value in once.weights.items():
        # Adam's division by small second moments lets rounding grow to 1e-3 of nine updates of 1e-3
        torch.testing.assert_close(shared.weights[name], value, rtol=1e-3, atol=1e-4, msg=name)
