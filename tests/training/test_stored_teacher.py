"""`clipx data reinforce`, then training on what it has stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import save
from stepping import model
from tiny_runs import MODEL, write_corpus

from clipx import cli
from clipx.config import build
from clipx.training.config import TrainConfig
from clipx.training.session import Session
from clipx.training.trainer import train
from clipx.types import UserError

CROPS = {"crop_scale": [0.3, 1.0], "flip": 0.5}
WIDE = MODEL | {"embed_dim": 24}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return save(folder / "checkpoints", 1, model=model(WIDE, seed=8), model_json=WIDE)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> dict[str, Any]:
    """A run on pairs whose embeddings are stored, as plain data."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "model.json").write_text(json.dumps(MODEL))
    pairs = write_corpus(folder / "pairs", samples=24, shards=2)
    plain = {
        "model": {"name": str(folder / "model.json")},
        "data": {"shards": str(pairs), "streams": 4, "workers": 0, **CROPS},
        "duration": "4 steps",
        "global_batch_size": 12,
        "optim": {"lr": 1e-3, "warmup": "1 steps"},
        "log_every": "1 steps",
        "checkpoint_every": "2 steps",
        "device": "cpu",
        "precision": "fp32",
        "run_dir": str(folder / "run"),
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(plain))  # JSON is YAML
    out = folder / "reinforced"
    arguments = ["data", "reinforce", str(path), str(teacher), "--out", str(out)]
    cli.main([*arguments, "--views", "2", "--precision", "fp32"])
    plain["data"]["reinforced"] = str(out)
    return plain


def config(settings: dict[str, Any], run: Path, **changes: Any) -> TrainConfig:
    return build(TrainConfig, settings | {"run_dir": str(run)} | changes, where="the test")


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def objective(teacher: Path | str, **weights: float) -> dict[str, Any]:
    return {"name": "distill", "teacher": str(teacher), "feature": 0.5, **weights}


def test_stored_embeddings_train_as_the_live_teacher_on_the_same_views(
    settings: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    """With `data.reinforced`, the live teacher sees the views whose embeddings are stored."""
    train(config(settings, tmp_path / "live", objective=objective(teacher)))
    train(config(settings, tmp_path / "stored", objective=objective("stored")))
    pairs = list(zip(records(tmp_path / "live"), records(tmp_path / "stored"), strict=True))
    assert len(pairs) == 4
    for live, stored in pairs:
        assert live["fingerprint"] == stored["fingerprint"]
        for name in ("loss", "pair_loss", "similarity_loss", "feature_loss"):
            # float16 rounds embeddings by 2^-11
            expected = pytest.approx(live[f"train/{name}"], rel=1e-3)
            assert stored[f"train/{name}"] == expected


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """With the projections of the student in the checkpoint."""
    whole = config(settings, tmp_path / "whole", objective=objective("stored"))
    train(whole)
    (tmp_path / "halves/checkpoints").mkdir(parents=True)
    kept = tmp_path / "whole/checkpoints/step_00000002"
    own = torch.load(kept / "training.pt", weights_only=True)["objective"]
    assert "image_projection.weight" in own
    kept.rename(tmp_path / "halves/checkpoints/step_00000002")
    train(config(settings, tmp_path / "halves", objective=objective("stored")))
    losses = [record["train/loss"] for record in records(tmp_path / "whole")]
    assert [record["train/loss"] for record in records(tmp_path / "halves")] == losses[2:]


def test_a_run_does_not_go_on_with_another_teacher(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Of the same name: the digest of its weights is in the checkpoint."""
    folder = tmp_path / "reinforced"
    shutil.copytree(settings["data"]["reinforced"], folder)
    data = settings["data"] | {"reinforced": str(folder)}
    run = config(settings, tmp_path / "run", objective=objective("stored"), data=data)
    train(run)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["teacher"]["digest"] = "ab" * 32
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not the teacher that this run began with"):
        Session(run)


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({}, {"flip": 0.0}, "is of another augmentation"),
        ({}, {"caption_field": "txt"}, "is of another data.caption_field"),
        ({}, {"reinforced": None}, "objective.teacher stored: data.reinforced names no folder"),
        ({}, {"reinforced": "nowhere"}, "data.reinforced nowhere has no manifest.json"),
        ({"objective": "slip"}, {}, "data.reinforced has the augmentation of `data`"),
        (
            {"objective": "image_text", "cache_features": "x"},
            {},
            "data.reinforced has other views of an image at each visit",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    settings: dict[str, Any],
    tmp_path: Path,
    changes: dict[str, Any],
    data: dict[str, Any],
    message: str,
) -> None:
    changed = {"objective": objective("stored"), "data": settings["data"] | data, **changes}
    with pytest.raises(UserError) as refused:
        Session(config(settings, tmp_path / "run", **changed))
    assert message in str(refused.value)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_the_verb_says_what_it_has_written_and_refuses_views_that_are_alike(
    settings: dict[str, Any],
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards = settings["data"]["shards"]
    arguments = ["data", "reinforce", shards, str(teacher), "--out", str(tmp_path / "out")]
    cli.main([*arguments, "data.crop_scale=[0.5, 1]"])
    printed = capsys.readouterr().out
    assert "4 views of each image" in printed
    assert f"train with objective.teacher=stored data.reinforced={tmp_path / 'out'}" in printed
    plain = ["data.crop_scale=[1, 1]", "data.crop_ratio=[1, 1]"]
    with pytest.raises(SystemExit):
        cli.main([*arguments, *plain])
    assert "--views 4: the augmentation has no randomness" in capsys.readouterr().err
