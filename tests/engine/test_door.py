"""What does not go together is refused before the first step, all of it at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import nn

from clipx.config import load
from clipx.engine.config import TrainConfig
from clipx.engine.door import check, with_defaults
from clipx.types import UserError

PLAIN = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
NORMED = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def complaints(encoder: nn.Module, ranks: int, *overrides: str) -> list[str]:
    base = ["data.shards=x", "run_dir=x", "model.name=x", "duration=1 steps"]
    config = load(TrainConfig, None, [*base, "global_batch_size=96", *overrides])
    try:
        check(config, encoder, world_size=ranks)
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


def test_batch_norm_is_refused_where_it_would_change_what_is_trained() -> None:
    (told,) = complaints(NORMED, 2, "micro_batch_size=12")
    assert told.startswith("micro_batch_size 12: 1 is a batch norm")
    (told,) = complaints(NORMED, 2, "parallel=fsdp2")
    assert told.startswith("parallel fsdp2: the statistics of 1, a batch norm")
    assert complaints(NORMED, 2) == []
    locked = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    assert complaints(locked, 2, "micro_batch_size=12", "parallel=fsdp2") == []


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
    found = with_defaults(json, sigmoid=True)
    assert (found["init_logit_scale"], found["init_logit_bias"]) == (scale, bias)
    assert with_defaults(json, sigmoid=False) == json
