"""What is said of an exception that ends training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import write_config

from clipx.config import load
from clipx.distributed.runtime import Job
from clipx.durations import parse_seconds
from clipx.training.config import RunPlan, TrainConfig
from clipx.training.errors import explain
from clipx.types import PeerError, RankError, UserError


class Here:
    def __init__(self, world_size: int) -> None:
        self.rank, self.world_size = 3, world_size


class Watching:
    def __init__(self, first: bool) -> None:
        self.first = first

    def is_first(self) -> bool:
        return self.first

    def blame(self) -> str:
        return "rank 1 on n1 has gone silent"


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return load(TrainConfig, write_config(tmp_path, tmp_path), [])


def say(error: BaseException, config: TrainConfig, *, ranks: int = 4, first: bool = True) -> Any:
    return explain(error, config, Here(ranks), Watching(first))  # type: ignore[arg-type]


RESET = RuntimeError("[/a/gloo/transport/tcp/pair.cc:545] Read error [::1]:4: Connection reset")
BUG = ValueError("a bug\nin many words")


def test_what_says_enough_stays_as_it_is(config: TrainConfig) -> None:
    for error in (UserError("x"), KeyboardInterrupt(), SystemExit(3)):
        assert say(error, config) is error
    assert say(BUG, config, ranks=1) is BUG
    assert say(RESET, config, ranks=1) is RESET


def test_the_first_rank_shows_a_bug_and_others_a_line(config: TrainConfig) -> None:
    assert say(BUG, config) is BUG
    assert BUG.__notes__ == ["on rank 3 of 4"]
    other = say(BUG, config, first=False)
    assert isinstance(other, PeerError)
    assert str(other) == "rank 3 too: ValueError: a bug"


def test_a_collective_that_fails_names_the_rank_to_blame(config: TrainConfig) -> None:
    first, other = (say(RESET, config, first=first) for first in (True, False))
    assert isinstance(first, PeerError)
    assert str(other) == "rank 3 ends: rank 1 on n1 has gone silent"
    assert str(first).startswith(str(other))
    assert "Connection reset" in str(first)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_to_change(error: Exception, config: TrainConfig) -> None:
    found = say(error, config, ranks=1)
    assert isinstance(found, RankError), "the rank that met it says it"
    for remedy in ("grad_checkpointing=true", "micro_batch_size=64", "pool.kind=ring"):
        assert remedy in str(found)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15 minutes", 900),
        ("23h30m", 84600),
        ("1 day 2 hours", 93600),
        ("90s", 90),
        ("1.5 h", 5400),
        (3600, 3600),
        ("0.2", 0.2),
    ],
)
def test_times(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "2 steps", "0 s", "-3", "1h h", "10 parsecs", "1..2 s", "9" * 400]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time; write for example '15 minutes'"):
        parse_seconds(text)


def plan(tmp_path: Path, **changes: Any) -> RunPlan:
    return RunPlan.of(load(TrainConfig, write_config(tmp_path, tmp_path, **changes), []), 96)


def test_checkpoints_are_due_by_steps_samples_or_the_clock(tmp_path: Path) -> None:
    assert plan(tmp_path, checkpoint_every="48 samples").checkpoint_every == 2
    timed = plan(tmp_path, checkpoint_every="15 minutes", keep_every="100 steps")
    assert (timed.checkpoint_every, timed.checkpoint_seconds) == (None, 900)
    assert timed.keep_every == 100
    with pytest.raises(UserError, match="checkpoint_every: '15 parsecs' is not a duration"):
        plan(tmp_path, checkpoint_every="15 parsecs")
    with pytest.raises(UserError, match="stop_after: 'soon' is not a time"):
        plan(tmp_path, stop_after="soon")


def test_a_run_ends_at_the_earlier_of_its_limits(tmp_path: Path) -> None:
    job = Job(host="n", end_time=5000.0)
    assert plan(tmp_path).deadline(Job(host="n"), 1000.0) is None
    assert plan(tmp_path).deadline(job, 1000.0) == 5000 - 120
    assert plan(tmp_path, stop_after="1h").deadline(job, 1000.0) == 4600
    assert plan(tmp_path, stop_after="2h", stop_margin=30).deadline(job, 1000.0) == 4970
