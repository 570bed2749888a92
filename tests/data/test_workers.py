"""Worker processes end with their loader, and the death of one is reported."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from loading import batches

from clipx.data.loader import load
from clipx.data.workers import from_workers
from clipx.types import RankError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on fewer cores


Workers = Callable[[], list[Any]]


@pytest.fixture
def workers() -> Workers:
    """The processes that this test has started; ranks of earlier tests may still wait for work."""
    before = multiprocessing.active_children()
    return lambda: [child for child in multiprocessing.active_children() if child not in before]


def test_a_killed_worker_is_reported_at_the_next_batch(corpus: Path, workers: Workers) -> None:
    """Not in the middle of a training step, which does not expect it."""
    loaded = load(batches(corpus, workers=2), 0, 1000)
    next(loaded)
    victim = workers()[0].pid
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    ends = time.monotonic() + 0.5
    while time.monotonic() < ends:
        time.sleep(0.01)  # a step of training, which the signal interrupts
    with pytest.raises(RankError) as caught:
        list(loaded)
    message = str(caught.value)
    assert message.startswith("a data worker was ended from outside, most often for want of memory")
    assert re.search(rf"\b{victim}\b|\[Errno", message)  # no number, where it takes long to die
    assert message.endswith("lower data.workers=2, or give the job more memory")
    del loaded, caught
    gc.collect()
    assert workers() == []


def test_a_killed_worker_that_takes_long_to_die_is_reported_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its batches cannot be received any more, and the system does not call it dead yet: torch's
    loader raises the error of the connection as it is."""

    def batches_of_torch(dataset: Any, **settings: Any) -> Iterator[Any]:
        yield dataset[0]
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr("clipx.data.workers.DataLoader", batches_of_torch)
    numbers = from_workers(str, range(5), workers=2)
    assert next(numbers) == "0"
    with pytest.raises(RankError, match=r"a data worker was ended from outside.*reset by peer"):
        next(numbers)
    with pytest.raises(ConnectionResetError):  # of a server of shards, in this process
        list(from_workers(str, range(5), workers=0))


def test_a_loader_leaves_the_signals_of_its_process_as_they_were(corpus: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    next(load(batches(corpus, workers=1), 0, 5))
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.parametrize("end", ["close", "exception", "forgotten"])
def test_no_worker_outlives_a_consumer_that_stops_early(
    corpus: Path, workers: Workers, end: str
) -> None:
    loaded = load(batches(corpus, workers=2), 0, 1000)
    assert len(list(islice(loaded, 3))) == 3
    assert len(workers()) == 2
    if end == "close":
        loaded.close()  # type: ignore[attr-defined]
    elif end == "exception":
        with pytest.raises(GeneratorExit):
            loaded.throw(GeneratorExit)  # type: ignore[attr-defined]
    del loaded
    gc.collect()
    assert workers() == []


STOPS_EARLY = """
import sys
from pathlib import Path
from loading import batches
from clipx.data.loader import load
from clipx.data.workers import from_workers
if __name__ == "__main__":
    loaded = load(batches(Path(sys.argv[1]), workers=2), 0, 1000)
    print(next(loaded).positions)
    if sys.argv[2] == "raise":
        raise KeyboardInterrupt
"""


@pytest.mark.parametrize("end", [pytest.param("return", marks=pytest.mark.slow), "raise"])
def test_a_process_may_end_with_its_loader_open(corpus: Path, tmp_path: Path, end: str) -> None:
    script = tmp_path / "stops.py"
    script.write_text(STOPS_EARLY)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:This DataLoader", str(script), corpus, end],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout == "[0, 1, 2, 3, 4, 5, 6, 7]\n"
    lines = done.stderr.strip().splitlines()
    if end == "return":
        assert lines == []
    else:
        assert lines[-1] == "KeyboardInterrupt"
        assert done.stderr.count("Traceback") == 1


def test_a_fault_in_a_worker_carries_shard_and_sample(corpus: Path) -> None:
    """A fault of the code, not of the sample: with the traceback of the worker."""
    source = batches(corpus, workers=1)
    source.tokenizer = None  # type: ignore[assignment]
    with pytest.raises(AttributeError) as caught:
        next(load(source, 0, 5))
    text = str(caught.value)
    assert "'NoneType' object has no attribute 'encode'" in text
    assert re.search(r"while reading sample \d+ of .*0000\d\.tar", text)
    assert "Traceback" in text
