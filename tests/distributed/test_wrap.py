"""Wrapped in either way, R ranks take the step of one process with all rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import wrap_checks
from ranks import RankGroup
from wrap_checks import HANDED, KINDS, LOCAL_ROWS, OBJECTIVES, SETTINGS, Arrays

from clipx.checkpoints.format import Training
from clipx.distributed.runtime import start
from clipx.distributed.wrap import SingleProcess, chosen, wrap
from clipx.types import UserError

SIZES = [2, pytest.param(3, marks=pytest.mark.slow)]
# What these do alone, others do in micro-batches or with more parts.
SLOW_SETTINGS = {"micro-batches", "checkpointing", "two views", "two views in micro-batches"}
SLOW_SETTINGS |= {"siamese texts", "mined negatives", "compiled micro-batches"}
SLOW_OBJECTIVES = set(OBJECTIVES) - {"momentum", "weighted"}


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size} ranks")
def group(request: pytest.FixtureRequest) -> Iterator[RankGroup]:
    """Ranks that are started once for each world size."""
    group = RankGroup(request.param)
    yield group
    group.close()


def cases_of(groups: Iterable[Any], names: Iterable[str], slow: set[str]) -> list[Any]:
    """Each of the groups with each of the names."""
    cases = []
    for group, name in itertools.product(groups, names):
        is_slow = name in slow or (group, name) == ("fsdp2", "compiled")
        marks = [pytest.mark.slow] if is_slow else []
        cases.append(pytest.param(group, name, marks=marks))
    return cases


@cache
def alone(rows: int, name: str) -> dict[str, Any]:
    """The same settings on one process, which has all `rows`."""
    settings = {k: v for k, v in SETTINGS[name].items() if k != "micro_batch_size"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wrap_checks, "LOCAL_ROWS", rows)
        return wrap_checks.gradients(start("cpu"), "ddp", **settings)


def assert_close(actual: Arrays, expected: Arrays, *, to: float) -> None:
    """Each array to `to` of its norm, and of the norm of them all where it is a small difference
    of large numbers."""
    assert actual.keys() == expected.keys() != set()
    scale = math.hypot(*(float(np.linalg.norm(e)) for e in expected.values()))
    for name, value in expected.items():
        off = np.linalg.norm(actual[name].astype(float) - value)
        assert off <= to * np.linalg.norm(value) + 0.1 * to * scale, name


@pytest.mark.parametrize(("kind", "name"), cases_of(KINDS, SETTINGS, SLOW_SETTINGS))
def test_gradients_equal_those_of_one_process(group: RankGroup, kind: str, name: str) -> None:
    """Every gradient, logit_scale's and logit_bias's included, on every rank."""
    expected = alone(LOCAL_ROWS * group.world_size, name)
    # float32 sums in another order; 16-bit arithmetic rounds each of them to 2^-8 or 2^-11, and
    # sharding rounds the weights too, where autocast leaves norms and biases in float32
    to = {"bf16": 5e-2, "fp16": 2e-2}.get(name, 5e-6)
    if "objective" in SETTINGS[name]:
        # log_scale's gradient of 0.01 is a difference of terms a hundred times as large
        to = 4e-5
    for actual in group(wrap_checks.gradients_of, (kind, name)):
        assert_close(actual["gradients"], expected["gradients"], to=to)
        assert actual["metrics"].keys() == expected["metrics"].keys()
        for key, value in expected["metrics"].items():
            assert actual["metrics"][key] == pytest.approx(value, rel=to, abs=to), key
    for locked in SETTINGS[name].get("locked", ()):
        assert not any(n.startswith(f"encoder.{locked}") for n in expected["gradients"])


@pytest.mark.parametrize(("pair", "objective"), cases_of(HANDED, OBJECTIVES, SLOW_OBJECTIVES))
def test_a_run_goes_on_the_other_way_round(
    group: RankGroup, pair: tuple[str, str], objective: str
) -> None:
    """DDP to FSDP2 and back, against one process that was never stopped: weights, moments of the
    optimizer, averages of the weights, and the objective's heads, averages and queue."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wrap_checks, "LOCAL_ROWS", LOCAL_ROWS * group.world_size)
        settings = {"clip_grad_norm": 0.5, "objective": objective}
        parts = wrap_checks.build(start("cpu"), "ddp", wrap_checks.adamw, **settings)
        wrap_checks.take(parts, range(4))
    expected = wrap_checks.trained(parts)
    for rank in group(wrap_checks.handed_over_by, (*pair, objective)):
        for what in ("weights", "ema", "own"):
            # Adam divides by small second moments: rounding of 1e-7 grows to 1e-4 of an update
            actual = rank[what]
            if expected[what]:
                assert_close(actual, expected[what], to=2e-4)
            assert actual.keys() == expected[what].keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_sample_of_one_rank_is_skipped_by_all(group: RankGroup, kind: str) -> None:
    ranks = group(wrap_checks.poisoned, kind)
    for actual in ranks:
        assert actual["outcome"] == "nonfinite"
        assert actual["same"], "no weight has changed"
        assert actual["no gradient"]
        assert actual["bad_rows"] == ([1] if actual is ranks[-1] else [])


def test_every_rank_evaluates_a_copy_of_the_averages(group: RankGroup) -> None:
    ranks = group(wrap_checks.copied, None)
    first = ranks[0]
    for rank in ranks:
        for name, value in rank["seen"].items():
            assert np.array_equal(value, first["ema"][name]), name
    assert any(not np.array_equal(first["seen"][n], v) for n, v in first["weights"].items())
    for rank in ranks:
        for name, value in rank["weights"].items():
            assert np.array_equal(rank["after"][name], value), name


def test_one_process_has_no_group_and_no_hooks() -> None:
    model = torch.nn.Linear(2, 2)
    runtime = start("cpu")
    assert isinstance(wrap(model, runtime, parallel="fsdp2"), SingleProcess)
    assert not dist.is_initialized()
    assert not model._forward_hooks
    assert not model._backward_hooks
    values = torch.ones(3)
    assert runtime.average(values) is values


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "ddp"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "2"}, "ddp"),
    ],
)
def test_auto_follows_accelerates_environment(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert chosen("auto") == expected
    assert (chosen("ddp"), chosen("fsdp2")) == ("ddp", "fsdp2"), "what is said outright goes first"


def test_fsdp_of_version_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="set fsdp_version: 2"):
        chosen("auto")


def test_training_holds_what_a_checkpoint_needs() -> None:
    assert {"optimizer", "random", "scaler", "objective", "ema"} == set(
        Training.__dataclass_fields__
    )
