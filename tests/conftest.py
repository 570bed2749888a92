"""Fixtures for all tests. Helpers that tests import by name are in samples.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import write_corpus

from clipx.training.interruption import SIGNALS


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's own cache, nor does a process that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """`clipx train` leaves its signals ignored, for the process ends then; a test's does not."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with 13 samples in shards of 5, 1 and 7."""
    folder = tmp_path / "corpus"
    write_corpus(folder)
    return folder
