"""A run that is stopped anywhere and goes on with other ranks and workers loads what an undisturbed
process loads: the same samples in the same batches, pixels and drawn captions included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from loading import TOKENS, batches, is_row_of
from samples import Members, pair, write_shard

from clipx.data.loader import Loaded, load
from clipx.data.sources import webdataset

GLOBAL = 24  # divisible by 1, 2, 3, 4 and 8 ranks
TOTAL = 6
# Of DataLoader, on a machine with fewer cores.
WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@dataclass(frozen=True)
class Stage:
    """A start of the run: so many ranks with so many workers each, for so many batches."""

    ranks: int
    workers: int
    batches: int


@dataclass(frozen=True)
class Scenario:
    """sizes: of the shards of each source. bad: the sources' samples 1, 4, 7 ... cannot be read"""

    sizes: tuple[tuple[int, ...], ...]
    stages: tuple[Stage, ...]
    weights: tuple[float, ...] | None = None
    repeat: tuple[int, ...] = (1, 1, 1)
    bad: bool = False
    streams: int = 4
    window: int = 3
    seed: int = 0

    @property
    def names(self) -> str:
        return "abc"[: len(self.sizes)]

    def is_bad(self, key: str) -> bool:
        return self.bad and int(key[1:]) % 3 == 1

    @property
    def epoch(self) -> Counter[str]:
        """How often an epoch has each key, where no weights give each source its own epochs."""
        sources = zip(self.names, self.sizes, self.repeat, strict=False)
        return Counter(
            {f"{name}{n}": times for name, sizes, times in sources for n in range(sum(sizes))}
        )


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any).map(tuple)
STAGES = st.builds(
    Stage, st.sampled_from([1, 2, 3, 4, 8]), st.integers(0, 3), st.integers(1, TOTAL - 2)
)
SCENARIOS = st.builds(
    Scenario,
    sizes=st.lists(SIZES, min_size=1, max_size=3).map(tuple),
    stages=st.tuples(STAGES, STAGES),
    weights=st.none() | st.tuples(*[st.floats(0.1, 10)] * 3),
    repeat=st.tuples(*[st.integers(1, 3)] * 3),
    bad=st.booleans(),
    streams=st.integers(1, 30),
    window=st.integers(1, 20),
    seed=st.integers(0, 2**40),
)


@cache
def members(number: int, *, broken: bool) -> Members:
    return {"txt": "x", "png": b""} if broken else pair(number)


def write(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """The settings of what was written."""
    for name, sizes in zip(scenario.names, scenario.sizes, strict=True):
        number = count()
        for shard, size in enumerate(sizes):
            keys = [f"{name}{n}" for n in islice(number, size)]
            samples = {
                key: members(int(key[1:]) + 50 * ord(name), broken=scenario.is_bad(key))
                for key in keys
            }
            write_shard(folder / name / f"{shard}.tar", samples)
    shares = dict(zip(scenario.names, scenario.weights or scenario.repeat, strict=False))
    return {
        "sources": {name: webdataset.Config(str(folder / name)) for name in scenario.names},
        "weights" if scenario.weights else "repeat": shares,
        "streams": scenario.streams,
        "window": scenario.window,
        "seed": scenario.seed,
        "global_batch_size": GLOBAL,
        "pad_to": TOKENS,
        "crop_scale": (0.5, 1.0),
        "flip": 0.5,
        "max_bad_fraction": 1.0,
    }


def by_rank(settings: dict[str, Any], stage: Stage, first: int) -> list[list[Loaded]]:
    """The batches of each rank of a stage before the run is stopped. The loader would go on to the
    run's end, so its workers are ahead of the stop."""
    last = min(first + stage.batches, TOTAL)
    parts = []
    for rank in range(stage.ranks):
        source = batches(None, rank=rank, world_size=stage.ranks, workers=stage.workers, **settings)
        parts.append(list(islice(load(source, first, TOTAL), last - first)))
    return parts


def check(scenario: Scenario, folder: Path) -> None:
    settings = write(scenario, folder)
    undisturbed = list(load(batches(None, **settings), 0, TOTAL))
    first = 0
    for stage in (*scenario.stages, Stage(1, 0, TOTAL)):
        for ranks in zip(*by_rank(settings, stage, first), strict=True):
            assert_equal(list(ranks), undisturbed[first])
            first += 1
            assert all(part.state == {"position": first * GLOBAL} for part in ranks)
    assert first == TOTAL
    if scenario.weights is None:
        assert_every_sample_once_per_epoch(scenario, undisturbed)


def assert_equal(ranks: list[Loaded], whole: Loaded) -> None:
    """The parts of a global batch, and the batch as one process loads it."""
    for row in range(GLOBAL):
        assert is_row_of(ranks[row % len(ranks)], row // len(ranks), whole, row)
    assert sum(len(part.keys) for part in ranks) == GLOBAL
    assert sum(part.fingerprint for part in ranks) % 2**63 == whole.fingerprint
    bad = [bad for part in ranks for bad in part.bad]
    assert sorted(bad, key=lambda b: b.position) == whole.bad


def drawn(batches: list[Loaded]) -> Iterator[str]:
    """The key that the order has at each position, whether its sample was good or replaced."""
    for batch in batches:
        bad = {b.position: b.key for b in reversed(batch.bad)}  # the first of each position
        for key, position in zip(batch.keys, batch.positions, strict=True):
            yield bad.get(position, key)


def assert_every_sample_once_per_epoch(scenario: Scenario, batches: list[Loaded]) -> None:
    size = scenario.epoch.total()
    keys = list(drawn(batches))
    for epoch in range(len(keys) // size):
        assert Counter(keys[epoch * size : (epoch + 1) * size]) == scenario.epoch
    assert Counter(keys[len(keys) // size * size :]) <= scenario.epoch
    used = {key for batch in batches for key in batch.keys}
    assert not any(scenario.is_bad(key) for key in used)


UNEQUAL = Scenario(
    ((9, 0, 1, 17, 40),), (Stage(8, 1, 2), Stage(3, 2, 3)), streams=8, window=10, bad=True
)
TINY = Scenario(((2,),), (Stage(2, 3, 1), Stage(4, 0, 3)), streams=30)
MIXED = Scenario(
    ((5, 9), (3,)), (Stage(4, 1, 3), Stage(2, 2, 2)), weights=(0.3, 5.0), bad=True, streams=7
)
REPEATED = Scenario(((3, 8), (2, 0, 1)), (Stage(3, 1, 4), Stage(1, 3, 1)), repeat=(1, 3))


@WORKERS
@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(scenario=SCENARIOS)
@example(scenario=UNEQUAL)
@example(scenario=TINY)
@example(scenario=MIXED)
@example(scenario=REPEATED)
def test_a_stopped_run_goes_on_exactly_with_other_ranks_and_workers(
    scenario: Scenario, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(scenario, tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@WORKERS
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenario=SCENARIOS)
def test_many_stopped_runs_go_on_exactly(
    scenario: Scenario, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(scenario, tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@WORKERS
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_every_number_of_ranks_and_workers_loads_the_same(
    ranks: int, workers: int, tmp_path: Path
) -> None:
    stages = (Stage(ranks, workers, 2), Stage(1, 1, 1), Stage(ranks, workers, 2))
    for number, sizes in enumerate([((9, 0, 1, 17, 40),), ((5,),)]):
        check(Scenario(sizes, stages, bad=True, streams=8), tmp_path / str(number))
