"""What a request may cost, and how one is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """body_bytes: of a request with all its pictures; picture_pixels: checked before decoding
    texts, terms, names: of a query; results: offset and page together
    active, waiting: requests that are worked on, and that wait for their turn
    body_seconds: in which a request must have arrived
    """

    body_bytes: int = 20_000_000
    picture_pixels: int = 25_000_000
    text_characters: int = 2000
    terms: int = 16
    class_names: int = 256
    results: int = 5000
    active: int = 32
    waiting: int = 128
    body_seconds: float = 30.0


class Refused(Exception):
    """A request that is answered by an error. status: of HTTP; retry_seconds: for Retry-After"""

    def __init__(self, status: int, message: str, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_seconds = retry_seconds


class Admission:
    """At most `active` requests at a time. `waiting` more stand in a queue, and others are refused,
    so that memory and waiting times have a bound."""

    def __init__(self, active: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(active)
        self._max_waiting = waiting
        self.num_waiting = 0
        self.num_active = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Raises Refused."""
        if self._free.locked() and self.num_waiting >= self._max_waiting:
            raise Refused(503, "too many requests at a time; try again in a second", 1)
        self.num_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.num_waiting -= 1
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1
            self._free.release()
