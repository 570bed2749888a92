"""What ranks do on GPUs, over NCCL: on two of them and more the cases of gloo, on a single one a
group of one rank, in which every collective runs and no number changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import checkpoint_checks
import numpy as np
import pytest
import torch
import torch.distributed as dist
import wrap_checks
from loss_checks import Case, oracle, train
from ranks import run_ranks
from test_wrap import alone, assert_close
from wrap_checks import HANDED, KINDS, LOCAL_ROWS, SETTINGS

from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import Parallel, Replicated, Sharded, Wrapped

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")]
several = pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices")
SIZES = [1, pytest.param(2, marks=several), pytest.param(4, marks=several)]
CASES = [
    Case(loss, pool, kinds=1, queue=5, steps=3)
    for loss in ("infonce", "sigmoid")
    for pool in ("gathered", "chunked", "ring")
]
TO = {"bf16": 5e-2, "fp16": 2e-2}
"""Beside the CPU: 16-bit arithmetic rounds each sum to 2^-8 or 2^-11."""


def in_a_group(runtime: Runtime, act: Any) -> Any:
    """Sharing the model also where there is one rank, which `wrap` leaves alone."""
    if not dist.is_initialized():
        dist.init_process_group("nccl", device_id=runtime.device)
    assert "nccl" in dist.get_backend()
    with mock.patch.object(wrap_checks, "wrap", shared):
        return act(runtime)


def shared(objective: Any, runtime: Runtime, *, parallel: Parallel, dtype: torch.dtype) -> Wrapped:
    objective.to(runtime.device)
    if parallel == "ddp":
        return Replicated(objective, runtime.device)
    return Sharded(objective, dtype)


def on_gpus(act: Any, world_size: int) -> list[Any]:
    if world_size > GPUS:
        pytest.skip(f"needs {world_size} CUDA devices")
    return run_ranks(partial(in_a_group, act=act), world_size, device="cuda", timeout_seconds=280)


def train_all(runtime: Runtime) -> list[dict[str, Any]]:
    return [train(runtime, case) for case in CASES]


@pytest.mark.parametrize("world_size", SIZES)
def test_each_loss_with_each_pool_equals_one_process(world_size: int) -> None:
    """Ring exchanges on two ranks are where send and receive wait for one another."""
    for rank, actual in enumerate(on_gpus(train_all, world_size)):
        for case, result in zip(CASES, actual, strict=True):
            rows, model, _ = oracle(case, world_size)
            mean = rows.view(world_size, -1)[rank].mean().item()
            assert result["loss"] == pytest.approx(mean, rel=1e-10)
            for name, parameter in model.named_parameters():
                gradient = torch.from_numpy(np.asarray(result["gradients"][name]))
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-11)


Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size} GPUs")
def ranks(request: pytest.FixtureRequest) -> Ranks:
    return on_gpus(wrap_checks.everything, request.param)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_shared_models_have_the_gradients_of_one_on_the_cpu(
    ranks: Ranks, kind: str, name: str
) -> None:
    expected = alone(LOCAL_ROWS * len(ranks), name)
    to = TO.get(name, 2e-5)  # float32 sums in another order, and other exponentials
    for rank in ranks:
        actual = rank["gradients"][kind, name]
        assert_close(actual["gradients"], expected["gradients"], to=to)
        for key, value in expected["metrics"].items():
            assert actual["metrics"][key] == pytest.approx(value, rel=to, abs=to), key


@pytest.mark.parametrize("pair", HANDED)
def test_a_run_goes_on_the_other_way_round(ranks: Ranks, pair: tuple[str, str]) -> None:
    for rank in ranks:
        handed = rank["handed over"]
        assert_close(handed[pair]["weights"], handed[pair[::-1]]["weights"], to=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_sample_of_one_rank_is_skipped_by_all(ranks: Ranks, kind: str) -> None:
    for rank in ranks:
        assert rank["poisoned"][kind]["outcome"] == "nonfinite"
        assert rank["poisoned"][kind]["same"]
    assert ranks[-1]["poisoned"][kind]["bad_rows"] == [1]


def test_every_rank_evaluates_a_copy_of_the_averages(ranks: Ranks) -> None:
    for rank in ranks:
        for name, value in rank["copied"]["seen"].items():
            assert np.array_equal(value, ranks[0]["copied"]["ema"][name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", SIZES)
def test_a_checkpoint_is_of_its_step_though_training_goes_on(
    world_size: int, kind: Parallel, tmp_path: Path
) -> None:
    """Its copies in pinned memory are taken while the device is busy."""
    save = partial(checkpoint_checks.save, folder=tmp_path, parallel=kind, fault=False)
    load = partial(checkpoint_checks.load, folder=tmp_path, parallel=kind)
    saved = on_gpus(save, world_size)
    assert [rank["fault"] for rank in saved] == [None] * world_size
    for rank in on_gpus(load, world_size):
        expected = saved[0]["expected"]
        assert rank["found"].keys() == expected.keys() != set()
        for name, value in expected.items():
            assert np.array_equal(rank["found"][name], value), name
