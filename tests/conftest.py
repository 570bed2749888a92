"""Fixtures for all tests. Helpers that tests import by name are in samples.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from samples import write_corpus

from clipx.training.interruption import SIGNALS

# Read when huggingface_hub is imported. Without it a name that no folder has is looked up again and
# again: 46 s without a network.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's own cache, nor does a process that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


FIRST = ("e2e", "distributed", "training", "report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: with two workers, one left for the end would leave a core idle."""
    items.sort(key=lambda item: item.path.parent.name not in FIRST)


@pytest.fixture(scope="session", autouse=True)
def own_processes() -> Iterator[None]:
    """No process outlives the tests, not even after a test that failed in the middle."""
    yield
    for process in multiprocessing.active_children():
        process.kill()


@contextmanager
def same_signals() -> Iterator[None]:
    """`clipx train` leaves its signals ignored, for the process ends then; that of tests does not,
    and the programs that it starts later would ignore them too."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    with same_signals():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Generator[None, object, object]:
    """A fixture may train a model for all tests of a file."""
    with same_signals():
        return (yield)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with 13 samples in shards of 5, 1 and 7."""
    folder = tmp_path / "corpus"
    write_corpus(folder)
    return folder
