"""What does not go together is refused before the first step, all of it at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import write_test_set
from torch import nn

from clipx.config import build, load
from clipx.distributed.runtime import Runtime
from clipx.losses.infonce import InfoNCE
from clipx.losses.sigmoid import Sigmoid
from clipx.training.config import RunPlan, TrainConfig
from clipx.training.validation import check, check_plan, with_defaults
from clipx.types import UserError

PLAIN = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
NORMED = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def complaints(encoder: nn.Module, ranks: int, *overrides: str) -> list[str]:
    base = ["data.shards=x", "run_dir=x", "model.name=x", "duration=1 steps"]
    config = load(TrainConfig, None, [*base, "global_batch_size=96", *overrides])
    try:
        check(config, encoder, world_size=ranks, num_samples=1000)
    except UserError as error:
        return str(error).split("\n")
    return []


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, []),
        (2, ["micro_batch_size=12", "grad_checkpointing=true", "parallel=fsdp2"]),
        (2, ["micro_batch_size=48"]),
        (4, ["micro_batch_size=1000"]),  # larger than the local batch: all at once
        (1, ["cache_features=x", "parallel=fsdp2", "micro_batch_size=12"]),
    ],
)
def test_what_goes_together_passes(ranks: int, overrides: list[str]) -> None:
    assert complaints(PLAIN, ranks, *overrides) == []


def test_a_global_batch_that_micro_batches_do_not_fill_is_told_the_nearest() -> None:
    (told,) = complaints(PLAIN, 8, "micro_batch_size=3", "global_batch_size=1000")
    assert told == (
        "global_batch_size 1000 is not a multiple of 8 ranks x micro_batch_size 3; "
        "the nearest that fits is 1008"
    )


def test_a_queue_longer_than_the_corpus_is_refused() -> None:
    assert complaints(PLAIN, 1, "pool.queue=1000") == []
    (told,) = complaints(PLAIN, 1, "pool.queue=1001")
    assert told.startswith("pool.queue 1001: the corpus has 1000 samples")


@pytest.mark.parametrize(
    "loss",
    [
        "margin",
        "{name: matryoshka, widths: {2: 1}, loss: margin}",
        "{name: infonce, global_normalizer: {gamma: 0.9}}",
    ],
)
def test_a_queue_is_refused_where_the_loss_does_not_use_it(loss: str) -> None:
    (told,) = complaints(PLAIN, 1, "pool.queue=7", f"loss={loss}", "data.label_field=cls")
    assert told.startswith(
        "pool.queue 7: with these settings the loss compares no pairs of earlier"
    )
    assert complaints(PLAIN, 1, "pool.queue=7", "loss={name: margin, pairs: all}") == []


def test_batch_norm_is_refused_where_it_would_change_what_is_trained() -> None:
    (told,) = complaints(NORMED, 2, "micro_batch_size=12")
    assert told.startswith("micro_batch_size 12: 1 is a batch norm")
    (told,) = complaints(NORMED, 2, "parallel=fsdp2")
    assert told.startswith("parallel fsdp2: the statistics of 1, a batch norm")
    assert complaints(NORMED, 2) == []
    locked = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    assert complaints(locked, 2, "micro_batch_size=12", "parallel=fsdp2") == []


def test_an_objective_that_needs_tokens_is_refused_cached_features() -> None:
    (told,) = complaints(PLAIN, 1, "objective=bag_of_tokens", "cache_features=x")
    assert told.startswith("cache_features gives features in place of pixels and token ids")


def test_all_complaints_come_at_once() -> None:
    overrides = ["cache_features=x", "grad_checkpointing=true", "compile=towers", "parallel=fsdp2"]
    told = complaints(NORMED, 2, "micro_batch_size=7", *overrides)
    assert len(told) == 6
    assert [text.split(" ")[0] for text in told] == [
        "global_batch_size",
        "micro_batch_size",
        "cache_features",
        "parallel",
        "cache_features",
        "cache_features",
    ]


@pytest.mark.parametrize(
    ("json", "scale", "bias"),
    [
        ({}, math.log(10), -10.0),
        ({"init_logit_scale": 1.5}, 1.5, -10.0),
        ({"init_logit_bias": -3.0}, math.log(10), -3.0),
    ],
)
def test_a_sigmoid_run_starts_from_the_papers_temperature_and_bias(
    json: dict[str, Any], scale: float, bias: float
) -> None:
    """Where the model's JSON is silent (arXiv:2303.15343, 3.2)."""
    found = with_defaults(json, Sigmoid())
    assert (found["init_logit_scale"], found["init_logit_bias"]) == (scale, bias)
    assert with_defaults(json, InfoNCE()) == json


ALONE = Runtime(SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1))


def configured(folder: Path, evaluators: dict[str, Any], **more: Any) -> TrainConfig:
    data = {
        "run_dir": str(folder / "run"),
        "data": {"shards": "x"},
        "model": {"name": "x"},
        "duration": "10 steps",
        "global_batch_size": 8,
        "optim": {"warmup": "2 steps"},
        "evaluators": evaluators,
    }
    return build(TrainConfig, data | more, where="the test")


BROKEN: dict[str, dict[str, Any]] = {
    "gone": {"name": "zero_shot", "path": "nowhere"},
    "split": {"name": "zero_shot", "path": "{set}", "split": "validation"},
    "templates": {"name": "zero_shot", "path": "{set}", "templates": "{set}/placeless.txt"},
    "classes": {"name": "zero_shot", "path": "{set}", "classes": "imagenett"},
    "slices": {
        "name": "fairness",
        "of": {"name": "zero_shot", "path": "{set}"},
        "table": "{set}/none.csv",
        "column": "age",
    },
}


def test_all_evaluators_are_checked_before_the_run_and_every_complaint_is_told(
    tmp_path: Path,
) -> None:
    shapes = write_test_set(tmp_path / "set")
    (shapes / "placeless.txt").write_text("a square\n")
    text = json.dumps(BROKEN).replace("{set}", str(shapes))
    good = {"name": "zero_shot", "path": str(shapes)}
    config = configured(tmp_path, {"good": good, **json.loads(text)})
    plan = RunPlan.of(config, 80)
    with pytest.raises(UserError) as refused:
        check_plan(config, config.evaluators, plan, ALONE)
    told = str(refused.value).split("\n")
    assert [line.partition(":")[0] for line in told] == [f"evaluators.{name}" for name in BROKEN]
    (tmp_path / "run/checkpoints/step_00000004").mkdir(parents=True)
    warned = check_plan(config, config.evaluators, plan, ALONE)
    assert warned == [f"{line}; training goes on" for line in told]
    config = configured(tmp_path, {"good": good})
    assert check_plan(config, config.evaluators, plan, ALONE) == []


@pytest.mark.parametrize(("steps", "count"), [(9, 0), (10, 1), (2000, 1)])
def test_a_warmup_that_is_not_shorter_than_the_run_is_warned_of(
    steps: int, count: int, tmp_path: Path
) -> None:
    config = configured(tmp_path, {}, optim={"warmup": f"{steps} steps"})
    told = check_plan(config, {}, RunPlan.of(config, 80), ALONE)
    assert ["is not shorter than the run of 10" in line for line in told] == [True] * count
