"""Every config in `configs/` loads, builds and says what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipx.config import load
from clipx.eval_verb import Suite
from clipx.models.dual_encoder import DualEncoder
from clipx.models.model_json import read_model_json
from clipx.training.config import RunPlan, TrainConfig

ROOT = Path(__file__).parents[1]
RUNS = sorted((ROOT / "configs/run").rglob("*.yaml"))
SUITES = sorted((ROOT / "configs/evaluators").glob("*.yaml"))
MODELS = sorted((ROOT / "configs/model").glob("*.json"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def test_the_configs_were_found() -> None:
    assert RUNS
    assert MODELS


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_run_loads_with_its_model_loss_and_durations(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # paths in configs are relative to it
    config = load(TrainConfig, path)
    config.loss.build()
    assert config.model.read()["embed_dim"] > 0
    plan = RunPlan.of(config, epoch_samples=100_000)
    assert plan.warmup <= plan.total


@pytest.mark.parametrize("path", [*RUNS, *SUITES], ids=name)
def test_a_config_begins_with_what_it_is_for(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


@pytest.mark.parametrize("path", SUITES, ids=name)
def test_a_suite_of_test_sets_loads(path: Path) -> None:
    assert load(Suite, path).evaluators


@pytest.mark.parametrize("path", MODELS, ids=name)
def test_a_model_json_builds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cfg = read_model_json(str(path))
    tower = cfg["text_cfg"].get("hf_model_name")
    if tower and not Path(tower).is_dir():
        pytest.skip(f"{tower} is downloaded")
    with torch.device("meta"):  # no memory: a JSON may be of a large model
        model = DualEncoder(cfg)
    assert sum(p.numel() for p in model.parameters()) > 0
