from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import served
from fastapi.testclient import TestClient

from clipx.search.query import Index


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.embed(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="session")
def index(folder: Path) -> Index:
    return Index.open(folder)


@pytest.fixture(scope="session")
def client(folder: Path) -> Iterator[TestClient]:
    with served.client(folder) as client:
        yield client
