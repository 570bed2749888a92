"""A server keeps nothing of the requests that it has answered."""

from __future__ import annotations

import gc
import tracemalloc

from fastapi.testclient import TestClient


def ask(client: TestClient, count: int) -> None:
    """Different requests each time, so that a cache of any of them would grow."""
    for number in range(count):
        text = {"terms": [{"text": f"red {number} {count}"}], "k": 3}
        row = {"terms": [{"row": number % 90}], "k": 3, "where": f"width >= {number % 9}"}
        for body in (text, row):
            assert client.post("/api/search", json=body).status_code == 200
        size = 16 + (number + count) % 500
        assert client.get(f"/api/picture/drawings/{number % 90}?size={size}").status_code == 200
        assert client.get(f"/api/picture/drawings/{10**6 + number}").status_code == 404


def test_memory_stays_after_hundreds_of_answers(client: TestClient) -> None:
    ask(client, 10)
    tracemalloc.start()
    try:
        ask(client, 20)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        ask(client, 60)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # An answer, a thumbnail or a vector is larger. Pydantic keeps up to 16,384 short strings.
    assert grown < 60 * 800
