from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import train, write_config, write_corpus


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with 96 pairs. Tests that change a corpus write their own."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("undisturbed"), pairs)


@pytest.fixture(scope="session")
def undisturbed(config: Path) -> Path:
    """The folder of a run of `config` that nothing disturbed, on one process without workers.
    To be copied, not changed."""
    train(config)
    return config.parent / "run"
