"""Training on cached features is training on the pictures, as far as float16 keeps it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from locked_towers import LOCKED, model_json, write_bert
from tiny_runs import metrics
from tiny_runs import train as run_train

from clipx.config import build
from clipx.data import feature_build
from clipx.training.config import TrainConfig
from clipx.training.interruption import Stop
from clipx.training.session import Session
from clipx.training.trainer import train
from clipx.types import Stopped, UserError


@pytest.fixture
def data(tmp_path: Path, corpus: Path) -> dict[str, Any]:
    """A run of locked towers, as plain data."""
    model = tmp_path / "model.json"
    model.write_text(json.dumps(model_json(write_bert(tmp_path / "bert"))))
    plain = {"crop_scale": [1, 1], "crop_ratio": [1, 1], "workers": 0}
    return {
        "run_dir": str(tmp_path / "run"),
        "model": {"name": str(model), "locked": LOCKED},
        "data": {"shards": str(corpus), "streams": 4, **plain},
        "duration": "4 steps",
        "global_batch_size": 8,
        "optim": {"lr": 1e-2, "warmup": "1 steps"},
        "log_every": "1 steps",
        "checkpoint_every": "2 steps",
        "device": "cpu",
        "precision": "fp32",
    }


def config(data: dict[str, Any], **changes: Any) -> TrainConfig:
    return build(TrainConfig, data | changes, where="the test")


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def test_losses_equal_those_on_pictures(data: dict[str, Any], tmp_path: Path) -> None:
    pictures = train(config(data))
    cached = train(
        config(data, run_dir=str(tmp_path / "cached"), cache_features=str(tmp_path / "features"))
    )
    assert cached == pictures  # step, position, corpus digest, fingerprint
    found = torch.tensor(losses(tmp_path / "cached"))
    # float16 rounds features by 2^-12; four steps of 1e-2 do not amplify it beyond this
    torch.testing.assert_close(found, torch.tensor(losses(tmp_path / "run")), atol=2e-3, rtol=0)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(data: dict[str, Any], tmp_path: Path) -> None:
    cache = str(tmp_path / "features")
    train(config(data, cache_features=cache))
    whole = losses(tmp_path / "run")
    halves = {**data, "run_dir": str(tmp_path / "halves"), "cache_features": cache}
    (tmp_path / "run/checkpoints/step_00000002").rename(tmp_path / "step_00000002")
    (tmp_path / "halves/checkpoints").mkdir(parents=True)
    (tmp_path / "step_00000002").rename(tmp_path / "halves/checkpoints/step_00000002")
    train(config(halves))
    assert losses(tmp_path / "halves") == whole[2:]


def test_two_processes_have_the_losses_of_one(data: dict[str, Any], tmp_path: Path) -> None:
    """Parameters without a gradient, and features that each rank computed a part of."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(data | {"cache_features": str(tmp_path / "one")}))
    run_one_and_two = (("one", 1), ("two", 2))
    for name, processes in run_one_and_two:
        told = (f"run_dir={tmp_path / name / 'run'}", f"cache_features={tmp_path / name}")
        done = run_train(path, *told, processes=processes)
        assert done.stderr.count("text features: ") == 1, "one rank speaks"
    for one, two in zip(*(metrics(tmp_path / n / "run") for n, _ in run_one_and_two), strict=True):
        assert one["fingerprint"] == two["fingerprint"]
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)


def test_a_signal_while_features_are_cached_stops_the_run_which_then_goes_on(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(data, cache_features=str(tmp_path / "whole"), run_dir=str(tmp_path / "whole"))
    train(whole)
    stop, images = Stop(), feature_build._embed_images

    def signaled(*arguments: Any) -> Any:
        stop._receive(signal.SIGTERM)
        return images(*arguments)

    monkeypatch.setattr(feature_build, "_embed_images", signaled)
    cached = config(data, cache_features=str(tmp_path / "features"))
    with pytest.raises(Stopped, match=r"by SIGTERM while features are cached; those in .* are ke"):
        train(cached, stop)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 0)
    assert not (tmp_path / "run/lock").exists()
    monkeypatch.undo()
    train(cached)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_signal_before_the_first_step_leaves_no_folder(
    data: dict[str, Any], tmp_path: Path
) -> None:
    stop = Stop()
    stop._receive(signal.SIGINT)
    with pytest.raises(Stopped, match="stopped by SIGINT before the first step of this start"):
        train(config(data), stop)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": {"flip": 0.5}}, "no flip"),
        ({"model": {"locked": ["visual.trunk"]}}, "model.locked"),
    ],
)
def test_what_cannot_be_cached_is_told_at_the_door(
    data: dict[str, Any], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    merged = {**data, **{key: data[key] | value for key, value in change.items()}}
    with pytest.raises(UserError, match=told):
        Session(config(merged, cache_features=str(tmp_path / "features")))
