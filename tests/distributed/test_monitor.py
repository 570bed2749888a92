"""Who is to blame, by what ranks tell of themselves."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ranks import run_ranks

from clipx.distributed import monitor
from clipx.distributed.monitor import Beat, Monitor, verdict
from clipx.distributed.runtime import Runtime, start

STEP = 12
LOSS, FORWARD, DATA = 2, 1, 0


def beats(*at: tuple[int, int], count: int = 5) -> list[Beat]:
    return [Beat(count, step, phase, f"n{rank}") for rank, (step, phase) in enumerate(at)]


EVEN = beats((STEP, LOSS), (STEP, LOSS), (STEP, LOSS))


def later(before: list[Beat], *silent: int) -> list[Beat]:
    return [b if r in silent else b._replace(count=b.count + 3) for r, b in enumerate(before)]


@pytest.mark.parametrize(
    ("before", "silent", "sentence"),
    [
        (EVEN, (1,), "rank 1 on n1 has gone silent: its process, host or network is down"),
        (EVEN, (1, 2), "rank 1 on n1, rank 2 on n2 have gone silent"),
        (EVEN, (), "all ranks live and are equally far: the network between them fails"),
        (
            beats((STEP, LOSS), (STEP, LOSS), (STEP, FORWARD)),
            (),
            "the others wait for rank 2 on n2, which in step 12 still embeds its batch",
        ),
        (
            beats((STEP, LOSS), (STEP, DATA), (STEP, FORWARD)),
            (),
            "the others wait for rank 1 on n1, which in step 12 still waits for data",
        ),
        (beats((STEP, DATA), (STEP - 1, LOSS)), (), "rank 1 on n1, which in step 11 still exch"),
        (EVEN, (0,), "all ranks live"),  # who asks lives
    ],
)
def test_the_verdict(before: list[Beat], silent: tuple[int, ...], sentence: str) -> None:
    assert sentence in verdict(0, before, later(before, *silent))


def ask(runtime: Runtime) -> dict[str, Any]:
    monitor.BEAT_SECONDS, monitor.LOOK_SECONDS = 0.05, 0.5
    own = Monitor(runtime, timeout_seconds=60)
    own.at(3, "data" if runtime.rank == 1 else "loss")
    runtime.barrier()
    if runtime.rank == 2:
        own.close()
        time.sleep(0.3)
    runtime.barrier()
    silent = own.blame()
    runtime.barrier()
    first = own.is_first()
    again = Monitor(runtime, timeout_seconds=60)  # keys of an earlier start are not taken for mine
    again.at(4, "forward" if runtime.rank == 0 else "loss")
    time.sleep(0.3)
    runtime.barrier()
    actual = {"silent": silent, "first": first, "again": again.blame()}
    runtime.barrier()
    return actual


def test_ranks_agree_on_who_is_silent_behind_and_first() -> None:
    ranks = run_ranks(ask, 3)
    assert all("rank 2 on" in rank["silent"] and "silent" in rank["silent"] for rank in ranks[:2])
    assert sum(rank["first"] for rank in ranks) == 1
    for rank in ranks:
        assert "wait for rank 0 on" in rank["again"]
        assert "step 4 still embeds its batch" in rank["again"]


def test_alone_there_is_nobody_to_ask() -> None:
    own = Monitor(start("cpu"), timeout_seconds=1)
    own.at(1, "loss")
    assert own.is_first()
    own.close()
