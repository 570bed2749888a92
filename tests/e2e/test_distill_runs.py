"""Distillation in whole runs: from a teacher, and from its stored embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_methods import LAST, own_state
from tiny_runs import MODEL, kill_when, metrics, run_clipx, steps_logged, train, weights_digest

pytestmark = pytest.mark.slow

TERMS = "feature: 1, similarity: 0.5, interactive: 0.5"


def settings_of(undisturbed: Path) -> tuple[str, ...]:
    return (
        f"objective={{name: distill, teacher: {undisturbed}, {TERMS}}}",
        f"duration={LAST} steps",
        "checkpoint_every=5 steps",
        "seed=3",
    )


def test_two_processes_in_micro_batches_are_as_one(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    settings = settings_of(undisturbed)
    one, two = tmp_path / "one", tmp_path / "two"
    train(config, f"run_dir={one}", *settings)
    train(config, f"run_dir={two}", *settings, "micro_batch_size=4", processes=2)
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert first["fingerprint"] == second["fingerprint"]
        for key in ("train/loss", "train/grad_norm", "train/similarity_loss"):
            assert second[key] == pytest.approx(first[key], rel=5e-3, abs=1e-5), first["step"]
    records = metrics(one)
    assert records[-1]["train/feature_loss"] < records[0]["train/feature_loss"]


def test_a_killed_run_goes_on_bit_by_bit(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    settings = settings_of(undisturbed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, f"run_dir={whole}", *settings)
    overrides = (f"run_dir={killed}", *settings)
    kill_when(lambda: steps_logged(killed) >= 12, tmp_path / "log", config, *overrides)
    train(config, *overrides)
    assert weights_digest(killed, LAST) == weights_digest(whole, LAST)
    assert metrics(killed) == metrics(whole)
    assert own_state(killed).keys() == {"_extra_state"}, "the digest of the teacher alone"


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("name", ["distill", "bag_of_tokens"])
def test_sharded_models_take_the_steps_of_one_process(
    config: Path, undisturbed: Path, tmp_path: Path, name: str, width: int
) -> None:
    """With heads and projections that stay whole on every rank."""
    objective, *settings = settings_of(undisturbed)
    if name != "distill":
        objective = f"objective={name}"
    model = tmp_path / "model.json"
    model.write_text(json.dumps(MODEL | {"embed_dim": width}))
    settings += [objective, f"model.name={model}"]
    one, two = tmp_path / "one", tmp_path / "two"
    train(config, f"run_dir={one}", *settings)
    train(config, f"run_dir={two}", *settings, "parallel=fsdp2", processes=2)
    losses = []
    for run in (one, two):
        losses.append(torch.tensor([record["train/loss"] for record in metrics(run)]))
    torch.testing.assert_close(losses[1], losses[0], rtol=5e-3, atol=1e-5)
    has_weights = any("weight" in key for key in own_state(two))
    assert has_weights == ((name, width) != ("distill", 16))


def test_stored_embeddings_on_two_processes_are_as_on_one(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Made by one process and by two, read by worker processes, killed and resumed."""
    augmentation = ("data.crop_scale=[0.3, 1]", "data.flip=0.5")
    folders = {}
    for processes in (1, 2):
        out = tmp_path / f"reinforced by {processes}"
        arguments = ("data", "reinforce", config, undisturbed, *augmentation, "--out", out)
        done = run_clipx(*arguments, processes=processes)
        assert done.returncode == 0, done.stderr
        folders[processes] = out
    for path in folders[1].iterdir():
        assert path.read_bytes() == (folders[2] / path.name).read_bytes(), path.name

    settings = (
        f"objective={{name: distill, teacher: stored, {TERMS}}}",
        f"data.reinforced={folders[1]}",
        "data.workers=1",
        f"duration={LAST} steps",
        "checkpoint_every=5 steps",
        "seed=3",
        *augmentation,
    )
    one, two, killed = tmp_path / "one", tmp_path / "two", tmp_path / "killed"
    train(config, f"run_dir={one}", *settings)
    train(config, f"run_dir={two}", *settings, "micro_batch_size=4", processes=2)
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert first["fingerprint"] == second["fingerprint"]
        for key in ("train/loss", "train/grad_norm", "train/similarity_loss"):
            assert second[key] == pytest.approx(first[key], rel=5e-3, abs=1e-5), first["step"]
    overrides = (f"run_dir={killed}", *settings)
    kill_when(lambda: steps_logged(killed) >= 12, tmp_path / "log", config, *overrides)
    train(config, *overrides)
    assert weights_digest(killed, LAST) == weights_digest(one, LAST)
