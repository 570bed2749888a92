"""Files of web servers, by the standard library instead of fsspec: each read has a deadline, an
answer that broke off is continued, and there is no event loop, which a forked loader worker would
not inherit."""

from __future__ import annotations

import binascii
import email.utils
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from typing import Any

from clipx.data.transfer.common import Busy, Refused, ShardFile, check_stamp

_SAFE_IN_URLS = "%/:=&?~#+!$,;'@()*[]"
_PASSING = (408, 416, 425, 429)  # statuses below 500 that are worth another attempt


def find_file(url: str, stall_seconds: float) -> ShardFile:
    """Describe a file by the headers of its server. Raises OSError as `_open` does."""
    try:
        with _open(url, stall_seconds, method="HEAD") as answer:
            return _describe(url, answer)
    except (PermissionError, Refused):
        # A URL that is signed for GET refuses HEAD.
        with _open(url, stall_seconds, headers={"Range": "bytes=0-0"}) as answer:
            return _describe(url, answer)


def stream(
    file: ShardFile, offset: int, stall_seconds: float
) -> Generator[tuple[int, bytes], None, None]:
    """See `clipx.data.transfer.stream`."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    with _open(file.url, stall_seconds, headers=headers) as answer:
        check_stamp(file, _describe(file.url, answer))
        # A server without ranges sends the whole file again.
        place = offset if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        content_range = answer.headers.get("Content-Range", "")
        if place and not content_range.startswith(f"bytes {place}-"):
            raise OSError(f"sent the range {content_range!r} instead of {headers['Range']!r}")
        # Absent from a chunked answer, whose end is marked.
        end = None if answer.length is None else place + answer.length
        try:
            while chunk := answer.read(1 << 20):
                yield place, chunk
                place += len(chunk)
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer broke off after {place} bytes: {error!r}") from error
        if end is not None and place != end:
            raise ConnectionError(f"the answer broke off after {place} of {end} bytes")


def _open(
    url: str, stall_seconds: float, *, method: str = "GET", headers: Mapping[str, str] = {}
) -> http.client.HTTPResponse:
    """Raises OSError: FileNotFoundError for 404 and 410, PermissionError for 401 and 403, Refused
    for other answers that are not worth another attempt."""
    try:
        # identity: a compressed answer would have other offsets than the file.
        request = urllib.request.Request(
            urllib.parse.quote(url, safe=_SAFE_IN_URLS),
            headers={"User-Agent": "clipx", "Accept-Encoding": "identity", **headers},
            method=method,
        )
        return urllib.request.urlopen(request, timeout=stall_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        message = f"HTTP {error.code} {error.reason}"
        kind = Refused
        if error.code in (404, 410):
            kind = FileNotFoundError
        elif error.code in (401, 403):
            kind = PermissionError
        elif error.code >= 500 or error.code in _PASSING:
            kind = OSError
        # A busy store may name the time for another attempt.
        wait_seconds = retry_after(error.headers.get("Retry-After"))
        if wait_seconds and error.code in (429, 503):
            raise Busy(message, wait_seconds) from None
        raise kind(message) from None
    except (http.client.InvalidURL, ValueError) as error:
        raise Refused(f"not a valid URL: {error}") from error
    except http.client.HTTPException as error:
        raise ConnectionError(f"not an HTTP answer: {error!r}") from error


def retry_after(header: str | None) -> float:
    """Seconds from now until the time of a Retry-After header: a number of seconds or a date. 0 for
    anything else."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        date = email.utils.parsedate_to_datetime(text)
        if date.tzinfo is None:  # written as `-0000`
            date = date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _describe(url: str, answer: http.client.HTTPResponse) -> ShardFile:
    """Describe the whole file, also if the answer is a range of it."""
    headers = answer.headers
    size = headers.get("Content-Length", "")
    md5 = hex_md5(headers.get("Content-MD5"))
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        # Length and MD5 are those of the range. The size of the whole follows a slash.
        size = headers.get("Content-Range", "").rpartition("/")[2]
        md5 = ""
    return ShardFile(
        url,
        size=int(size) if size.isdecimal() and len(size) < 19 else -1,
        stamp=headers.get("ETag") or headers.get("Last-Modified") or "",
        md5=md5,
    )


def hex_md5(base64: Any) -> str:
    """Decode the base64 of headers and of Google's listings. Returns "" for anything else."""
    try:
        raw = binascii.a2b_base64(base64 or "")
    except (ValueError, TypeError):
        return ""
    return raw.hex() if len(raw) == 16 else ""
