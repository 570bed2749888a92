"""Files of object stores, by fsspec. They are read in ranges, each a call of its own, so that one
which hangs can be abandoned and repeated."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Generator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from clipx.data.transfer.common import ShardFile, check_stamp, within
from clipx.data.transfer.http import hex_md5

CHUNK = 4 << 20  # bytes that must come within the deadline: 70 kB/s for 60 s
_S3 = ("s3:", "s3a:")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


def filesystem(url: str) -> Any:
    """The fsspec file system of a URL. Ask anew for each use: one that was made before a fork does
    not work after it."""
    parts = urllib.parse.urlsplit(url)
    return _filesystem(os.getpid(), f"{parts.scheme}://{parts.netloc}")


@lru_cache(maxsize=64)
def _filesystem(pid: int, root: str) -> Any:
    """One for all threads of a process: fsspec's own cache makes one per thread."""
    import fsspec.core

    return fsspec.core.url_to_fs(root, use_listings_cache=False)[0]


def path_in_store(url: str) -> str:
    import fsspec.core

    return fsspec.core.strip_protocol(url)


def stream(
    file: ShardFile, offset: int, stall_seconds: float
) -> Generator[tuple[int, bytes], None, None]:
    """See `clipx.data.transfer.stream`."""
    store = filesystem(file.url)
    path = path_in_store(file.url)
    place = offset
    while file.size < 0 or place < file.size:
        end = place + CHUNK
        if file.size >= 0:
            end = min(end, file.size)
        chunk = within(stall_seconds, store.cat_file, path, start=place, end=end)
        if chunk:
            yield place, chunk
        place += len(chunk)
        if place < end:
            break  # the end of the file; S3 answers a range behind it with an error
    if file.stamp:
        # The ranges may come from two versions of the file.
        check_stamp(file, from_info(file.url, within(stall_seconds, store.info, path)))


def from_info(url: str, info: Mapping[str, Any]) -> ShardFile:
    """Describe a file by its entry in an fsspec listing, whose keys differ between stores."""
    size = info.get("size")
    etag = str(info.get("ETag") or info.get("etag") or info.get("blob_id") or "").strip('"')
    stamp = etag
    for name in _TIMES:
        if stamp:
            break
        time = info.get(name)
        if isinstance(time, datetime):
            # A listing and a single answer may give one moment in different time zones.
            time = str(time.timestamp())
        stamp = str(time or "")
    md5 = hex_md5(info.get("md5Hash"))
    # ETags of a directory bucket (--x-s3) have the form of an MD5, but are not one.
    if url.startswith(_S3) and "--x-s3/" not in url and re.fullmatch("[0-9a-f]{32}", etag):
        md5 = etag
    return ShardFile(url, size=-1 if size is None else int(size), stamp=stamp, md5=md5)


def md5_applies(file: ShardFile, stall_seconds: float) -> bool:
    """False for an S3 object encrypted by KMS, whose ETag only looks like an MD5. Listings do not
    show that."""
    if not file.url.startswith(_S3):
        return True
    bucket, _, key = path_in_store(file.url).partition("/")
    call = filesystem(file.url).call_s3
    head = within(stall_seconds, call, "head_object", Bucket=bucket, Key=key)
    return not head.get("ServerSideEncryption", "").startswith("aws:")
