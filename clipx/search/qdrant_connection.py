"""A collection of a Qdrant server, by its URL: requests with retries, and errors with a remedy."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from clipx.types import UserError

KEY_VARIABLE = "QDRANT_API_KEY"
TIMEOUT_SECONDS = 60
SHORT_WAITS = (0.2, 1.0)
"""Seconds between the attempts of a request that a person waits for."""
LONG_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0)
"""The same of an upload, which outlasts a server that is started again."""
T = TypeVar("T")


class QdrantError(UserError):
    """The server cannot be reached, or refuses a request."""


class QdrantConnection:
    """client: a qdrant_client.QdrantClient; url: of the collection, for messages
    waits: seconds before each further attempt of a request that failed for a while
    """

    def __init__(
        self, client: Any, collection: str, url: str, waits: Sequence[float] = SHORT_WAITS
    ) -> None:
        self.client = client
        self.collection = collection
        self.url = url
        self.waits = waits

    @classmethod
    def open(cls, url: str, *, waits: Sequence[float] = SHORT_WAITS) -> QdrantConnection:
        """Asks nothing of the server yet. Raises UserError.

        url: http://host:6333/collection; a key is read from QDRANT_API_KEY
        """
        parts = urlsplit(url)
        prefix, _, collection = parts.path.rstrip("/").rpartition("/")
        if "@" in parts.netloc or parts.query:
            # Not repeated here, since it may have a password.
            raise UserError(
                f"the URL of a collection has no user and no ?: give the key as {KEY_VARIABLE}"
            )
        try:
            is_address = bool(parts.hostname) and parts.port != 0
        except ValueError:  # of a port that is no number below 65536
            is_address = False
        if not is_address or not re.fullmatch(r"[\w.-]{1,200}", collection):
            raise UserError(
                f"{url} is not the URL of a collection, such as http://localhost:6333/demo"
            )
        qdrant_client = import_qdrant()
        key = os.environ.get(KEY_VARIABLE)
        client = qdrant_client.QdrantClient(
            url=f"{parts.scheme}://{parts.netloc}",
            prefix=prefix.strip("/") or None,
            # As a header: given as `api_key`, it turns http into https.
            headers={"api-key": key} if key else None,
            timeout=TIMEOUT_SECONDS,
            # The check prints warnings from a thread of its own.
            check_compatibility=False,
        )
        return cls(client, collection, url, waits)

    def call(self, method: Callable[..., T], **arguments: Any) -> T:
        """Call a method of the client for this collection. Raises QdrantError."""
        waits = iter(self.waits)
        while True:
            try:
                return method(collection_name=self.collection, **arguments)
            except self._errors() as error:
                wait = next(waits, None) if _is_passing(error) else None
                if wait is None:
                    raise QdrantError(self._message(error)) from error
                # A server that is too busy names the time to wait.
                time.sleep(max(wait, getattr(error, "retry_after_s", 0)))

    @staticmethod
    def _errors() -> tuple[type[Exception], ...]:
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ApiException

        return ApiException, ResourceExhaustedResponse

    def _message(self, error: Exception) -> str:
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return f"{self.url} refuses access ({status}): set {KEY_VARIABLE} to a key that may"
        if status == 404:
            return f"{self.url}: there is no such collection; upload one by `clipx index DIR --to`"
        if status is not None:
            return f"{self.url} answers {status}: {_detail(error)}"
        source = getattr(error, "source", error)
        return (
            f"{self.url} cannot be reached ({type(source).__name__}: {source}); check the address, "
            "and that Qdrant runs there"
        )


def _is_passing(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    status = getattr(error, "status_code", None)
    return status is None or status in (408, 429) or status >= 500


def _detail(error: Any) -> str:
    """The server's own message, of a response that may be of another program."""
    try:
        return str(error.structured()["status"]["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return f"{error.reason_phrase}, in no form of Qdrant's"


def is_url(source: Path | str) -> bool:
    """Whether a source of embeddings is a collection, and no folder."""
    return re.match(r"https?://", str(source)) is not None


def import_qdrant() -> Any:
    """Raises UserError where it is not installed."""
    try:
        import qdrant_client
    except ImportError as error:
        raise UserError(
            "a collection of Qdrant needs its client: pip install 'clipx-train[search,qdrant]'"
        ) from error
    return qdrant_client
