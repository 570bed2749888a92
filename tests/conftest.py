"""Fixtures for all tests. Helpers that tests import by name are in samples.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with 13 samples in shards of 5, 1 and 7."""
    folder = tmp_path / "corpus"
    write_corpus(folder)
    return folder
