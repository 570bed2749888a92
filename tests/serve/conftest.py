from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import served
from browsing import chromium
from fastapi.testclient import TestClient
from ranks import ROOT, environment

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


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of a running server."""
    command = [sys.executable, "-m", "clipx", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    address = ""
    while not address.startswith("http"):
        address = process.stdout.readline()
        assert address, "the server has ended"
    yield address.strip()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stdout.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Chromium]:
    browser = chromium.Chromium()
    yield browser
    browser.close()
