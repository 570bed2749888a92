"""The fixture `fuzz`: try generated cases against one check for a bounded time.

A check must either accept a case or reject it by a `UserError`; any other exception fails the test
and hypothesis shrinks the case. Each case has 10 s of processor time and 512 MiB of memory.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from fuzzing import Fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

# Of each of 25 tests: half a minute in CI, ten in `launch/test.sh --all`. The quick ones have few
# seeds, always the same, so that CI does not fail by what a faster machine finds.
QUICK_SECONDS, LONG_SECONDS = 0.7, 22
QUICK_SEEDS = range(6)
LONG_SEEDS = range(1_000, 1_000_000)
CASE_SECONDS, CASE_MIB = 10, 512
CASES_PER_SEED = 25  # hypothesis has no time budget, so it runs one seed after the other

_tried: dict[str, int] = {}


@pytest.fixture(
    params=[
        pytest.param((QUICK_SECONDS, QUICK_SEEDS), id="quick"),
        pytest.param((LONG_SECONDS, LONG_SEEDS), id="long", marks=pytest.mark.slow),
    ]
)
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """fuzz(strategy, check): call `check` with cases of the strategy until the time is up."""

    def run(strategy: SearchStrategy[Any], check: Callable[[Any], None]) -> None:
        name = request.node.name
        seconds, seeds = request.param
        end = time.monotonic() + seconds
        _tried.setdefault(name, 0)

        def bounded(case: Any) -> None:
            _tried[name] += 1
            with _time_bound(), _memory_bound():
                check(case)

        for seed in seeds:
            if seed != seeds.start and time.monotonic() > end:
                break
            one_seed = settings(
                max_examples=CASES_PER_SEED,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )(given(strategy)(bounded))
            hypothesis.seed(seed)(one_seed)()

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, count in _tried.items():
        terminalreporter.write_line(f"fuzz {name}: {count:,} cases")
    if _tried:
        terminalreporter.write_line(f"fuzz: {sum(_tried.values()):,} cases in all")


@contextmanager
def _time_bound() -> Iterator[None]:
    """By processor time, since other processes may be running; for a case that only waits, the
    time limit of the whole test is left, which has SIGALRM."""

    def too_long(_number: int, _frame: object) -> None:
        raise AssertionError(f"a case took more than {CASE_SECONDS} s")

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _memory_bound() -> Iterator[None]:
    """Compare the peak of the resident memory, which Linux resets on request, with its start."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    yield
    grown = _status_mib("VmHWM") - before
    assert grown < CASE_MIB, f"a case took {grown} MiB of memory"


def _status_mib(field: str) -> int:
    line = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert line is not None
    return int(line[1]) // 1024
