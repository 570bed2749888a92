"""Files of object stores, by fsspec: in ranges, each a call of its own, so that one which hangs can
be left behind and repeated."""

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

CHUNK = 4 << 20  # bytes that must come within the deadline: in 60 s, that is 70 kB/s


def filesystem(url: str) -> Any:
    """The fsspec file system of an URL. Ask anew for each use: one that was made before a fork is
    of no use after it."""
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
    store, path, place = filesystem(file.url), path_in_store(file.url), offset
    while file.size < 0 or place < file.size:
        end = place + CHUNK if file.size < 0 else min(place + CHUNK, file.size)
        chunk = within(stall_seconds, store.cat_file, path, start=place, end=end)
        if chunk:
            yield place, chunk
        place += len(chunk)
        if place < end:
            break  # asking S3 for what lies behind the end is an error
    if file.stamp:  # the ranges may be of two versions: one more question for the whole file
        check_stamp(file, from_info(file.url, within(stall_seconds, store.info, path)))


def from_info(url: str, info: Mapping[str, Any]) -> ShardFile:
    """Of a file in a listing by fsspec, whose stores differ in how they name what they tell."""
    etag = str(info.get("ETag") or info.get("etag") or info.get("blob_id") or "").strip('"')
    names = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
    times = [info[name] for name in names if info.get(name)]
    # of one moment, a listing and a single answer may have different time zones
    told = [str(t.timestamp()) if isinstance(t, datetime) else str(t) for t in times]
    stamp = etag or "".join(told[:1])
    md5 = hex_md5(info.get("md5Hash"))
    # a directory bucket (--x-s3) has ETags of the same form that are no MD5
    if (
        url.partition(":")[0] in ("s3", "s3a")
        and "--x-s3/" not in url
        and re.fullmatch("[0-9a-f]{32}", etag)
    ):
        md5 = etag
    size = info.get("size")
    return ShardFile(url, size=-1 if size is None else int(size), stamp=stamp, md5=md5)


def md5_applies(file: ShardFile, stall_seconds: float) -> bool:
    """False for an object encrypted by KMS, whose ETag only looks like an MD5; no listing tells."""
    if file.url.partition(":")[0] not in ("s3", "s3a"):
        return True
    bucket, _, key = path_in_store(file.url).partition("/")
    head = within(
        stall_seconds, filesystem(file.url).call_s3, "head_object", Bucket=bucket, Key=key
    )
    return not head.get("ServerSideEncryption", "").startswith("aws:")
