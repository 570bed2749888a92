"""Files of web servers, by the standard library and not by fsspec: its sockets have a deadline for
each read, an answer that broke off is continued, and nothing of it runs in an event loop, which
a forked loader worker would not inherit."""

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


def stream(
    file: ShardFile, offset: int, stall_seconds: float
) -> Generator[tuple[int, bytes], None, None]:
    wanted = {"Range": f"bytes={offset}-"} if offset else {}
    with http_open(file.url, stall_seconds, headers=wanted) as answer:
        check_stamp(file, described(file.url, answer))
        place = offset if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        if place and not answer.headers.get("Content-Range", "").startswith(f"bytes {place}-"):
            raise OSError(f"sent {answer.headers.get('Content-Range')} when asked for {wanted}")
        end = None if answer.length is None else place + answer.length
        try:
            while chunk := answer.read(1 << 20):
                yield place, chunk
                place += len(chunk)
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer broke off after {place} bytes: {error!r}") from error
        if end is not None and place != end:
            raise ConnectionError(f"the answer broke off after {place} of {end} bytes")


def http_open(
    url: str, stall_seconds: float, *, method: str = "GET", headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    """An answer with a body. Raises OSError: FileNotFoundError for 404 and 410, PermissionError for
    401 and 403, Refused for what else is not worth another attempt."""
    try:
        request = urllib.request.Request(
            urllib.parse.quote(url, safe=_SAFE_IN_URLS),
            headers={"User-Agent": "clipx", "Accept-Encoding": "identity", **headers},
            method=method,
        )
        return urllib.request.urlopen(request, timeout=stall_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        text = f"HTTP {error.code} {error.reason}"
        if error.code in (404, 410):
            raise FileNotFoundError(text) from None
        if error.code in (401, 403):
            raise PermissionError(text) from None
        wait_seconds = retry_after(error.headers.get("Retry-After"))
        if wait_seconds and error.code in (429, 503):
            raise Busy(text, wait_seconds) from None
        if error.code >= 500 or error.code in (408, 416, 425, 429):
            raise OSError(text) from None
        raise Refused(text) from None
    except (http.client.InvalidURL, ValueError) as error:
        raise Refused(f"no valid URL: {error}") from error
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer: {error!r}") from error


def retry_after(header: str | None) -> float:
    """Seconds from now, of a number of them or a date; 0 where the header tells neither."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        date = email.utils.parsedate_to_datetime(text)
        now = datetime.now(date.tzinfo or UTC)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def described(url: str, answer: http.client.HTTPResponse) -> ShardFile:
    """What the headers tell of the whole file, of which the answer may be a range."""
    headers = answer.headers
    size, md5 = headers.get("Content-Length", ""), headers.get("Content-MD5")
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:  # both are of the range
        size, md5 = headers.get("Content-Range", "").rpartition("/")[2], None
    return ShardFile(
        url,
        size=int(size) if size.isdecimal() and len(size) < 19 else -1,
        stamp=headers.get("ETag") or headers.get("Last-Modified") or "",
        md5=hex_md5(md5),
    )


def hex_md5(base64: Any) -> str:
    """Of the base64 that headers and Google's listings have; "" for anything else."""
    try:
        raw = binascii.a2b_base64(base64 or "")
    except (ValueError, TypeError):
        return ""
    return raw.hex() if len(raw) == 16 else ""
