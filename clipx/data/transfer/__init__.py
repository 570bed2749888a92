"""The bytes of one remote file, in order: by HTTP, by fsspec or from a pipe."""

from __future__ import annotations

from collections.abc import Generator

from clipx.data.transfer import http, pipe, store
from clipx.data.transfer.common import ShardFile


def is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def is_pipe(url: str) -> bool:
    return url.startswith("pipe:")


def stream(
    file: ShardFile, offset: int, stall_seconds: float
) -> Generator[tuple[int, bytes], None, None]:
    """Yield (place of the first byte, bytes) in order, from `offset` on, or from 0 if the store
    cannot start in the middle. Raises OSError, also if the file has changed since it was found."""
    if is_pipe(file.url):
        return pipe.stream(file.url.removeprefix("pipe:"), stall_seconds)
    if is_http(file.url):
        return http.stream(file, offset, stall_seconds)
    return store.stream(file, offset, stall_seconds)
