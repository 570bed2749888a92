"""Each loss and objective in a whole run: on two processes as on one, and killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    kill_when,
    metrics,
    picture,
    steps_logged,
    train,
    weights_digest,
    write_config,
    write_tar,
)
from tiny_runs import png as encoded

LAST = 20
HEAD = "views: {hidden: 24, width: 12}"
METHODS = {
    "nt_xent": ["loss=nt_xent"],
    "margin": ["loss={name: margin, pairs: all}"],
    "global_normalizer": ["loss={name: infonce, global_normalizer: {gamma: 0.5, epsilon: 0.01}}"],
    "triplet": ["loss={name: triplet, mining: all}"],
    "hard_negative": ["loss={name: hard_negative, tau_plus: 0.01}", "pool.queue=30"],
    "multi_positive": ["loss={name: multi_positive, image_image: 0.5}"],
    "matryoshka": ["loss={name: matryoshka, widths: {16: 1, 4: 0.5}, loss: infonce}"],
    "two_view": [f"objective={{name: two_view, {HEAD}}}"],
    "slip": [f"objective={{name: slip, {HEAD}, share_view: true}}", "pool.queue=30"],
    "momentum": [f"objective={{name: momentum, {HEAD}, queue: 8, momentum: 0.9}}"],
    "momentum_pairs": ["objective={name: momentum_pairs, momentum: 0.9}", "pool.queue=30"],
    "predictive": [f"objective={{name: predictive, {HEAD}, grid: 3}}"],
    "weighted": [
        "objective={name: weighted, weights: {views: 0.5}, objectives: "
        f"{{pairs: image_text, views: {{name: two_view, {HEAD}}}}}}}"
    ],
    "bag_of_tokens": ["objective={name: bag_of_tokens, weight: 0.5}"],
    "bag_of_tokens, alone": ["objective={name: bag_of_tokens, contrast: false}"],
}


def own_state(run: Path) -> dict[str, Any]:
    path = run / "checkpoints" / f"step_{LAST:08d}" / "training.pt"
    return torch.load(path, weights_only=True)["objective"]


# The others also equal one process in tests/distributed: test_pool and test_wrap.
QUICK = ("slip",)


@pytest.mark.parametrize(
    "method",
    [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_two_processes_in_micro_batches_are_as_one(
    config: Path, tmp_path: Path, method: str
) -> None:
    settings = (*METHODS[method], f"duration={LAST} steps")
    one, two = tmp_path / "one", tmp_path / "two"
    train(config, f"run_dir={one}", *settings)
    train(config, f"run_dir={two}", *settings, "micro_batch_size=4", processes=2)
    pairs = list(zip(metrics(one), metrics(two), strict=True))
    for first, second in pairs:
        assert first.keys() == second.keys()
        assert first["fingerprint"] == second["fingerprint"]
        for key in ("train/loss", "train/grad_norm"):
            # float32 sums in another order, over twenty steps
            assert second[key] == pytest.approx(first[key], rel=5e-3, abs=1e-5), first["step"]
    losses = [first["train/loss"] for first, _ in pairs]
    # Not the first step, at which a queue is empty and the loss smaller.
    assert sum(losses[-3:]) < sum(losses[1:4]), "it did learn"


WITH_STATE = {  # and whether the test is slow
    "hard_negative": True,
    "two_view": True,
    "slip": True,
    "momentum": False,
    "predictive": True,
    "weighted": True,
    "bag_of_tokens": True,
    "global_normalizer": True,
}


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow) if slow else m for m, slow in WITH_STATE.items()],
)
def test_a_killed_run_goes_on_bit_by_bit(config: Path, tmp_path: Path, method: str) -> None:
    """With the state of the objective: its head, its queue, its averages, its counts."""
    settings = (*METHODS[method], f"duration={LAST} steps", "checkpoint_every=5 steps")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train(config, f"run_dir={undisturbed}", *settings)
    overrides = (f"run_dir={killed}", *settings)
    kill_when(lambda: steps_logged(killed) >= 12, tmp_path / "log", config, *overrides)
    train(config, *overrides)
    assert weights_digest(killed, LAST) == weights_digest(undisturbed, LAST)
    assert metrics(killed) == metrics(undisturbed)
    states = own_state(killed), own_state(undisturbed)
    assert states[0].keys() == states[1].keys() != set()
    for name, value in states[0].items():
        expected = states[1][name]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected)
            continue
        for key, rows in value.items():
            assert torch.equal(rows, expected[key])


@pytest.mark.slow
@pytest.mark.parametrize("method", WITH_STATE)
def test_a_killed_run_goes_on_with_two_processes(config: Path, tmp_path: Path, method: str) -> None:
    """On the same samples, and with what the objective kept."""
    settings = (*METHODS[method], f"duration={LAST} steps", "checkpoint_every=5 steps")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train(config, f"run_dir={undisturbed}", *settings)
    overrides = (f"run_dir={killed}", *settings)
    kill_when(lambda: steps_logged(killed) >= 12, tmp_path / "log", config, *overrides)
    train(config, *overrides, processes=2)
    for actual, expected in zip(metrics(killed), metrics(undisturbed), strict=True):
        assert actual["fingerprint"] == expected["fingerprint"]
        assert actual["train/loss"] == pytest.approx(expected["train/loss"], rel=5e-3)


def test_simclr_trains_on_pictures_without_captions(tmp_path: Path) -> None:
    members = {f"{n:03d}.png": encoded(picture("red", "bar", n)) for n in range(48)}
    write_tar(tmp_path / "pictures/0.tar", members)
    config = write_config(tmp_path / "run", tmp_path / "pictures", log_every="2 steps")
    train(config, *METHODS["two_view"], "duration=6 steps")
    assert metrics(tmp_path / "run/run")[-1]["step"] == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pool.queue=8"], "pool.queue 8: the objective has no image-text pairs to keep"),
        (["cache_features=CACHE"], "cache_features keeps one view of each image"),
    ],
)
def test_settings_that_the_objective_cannot_use_are_named(
    config: Path,
    tmp_path: Path,
    settings: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from clipx import cli

    changed = [text.replace("CACHE", str(tmp_path / "cache")) for text in settings]
    locked = ["model.locked=[visual.transformer]"] if "cache" in settings[0] else []
    arguments = ["train", str(config), f"run_dir={tmp_path}/run", *METHODS["two_view"], *changed]
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, *locked])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
