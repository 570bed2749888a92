"""Remote shards: the files that a pattern matches in a store, and the small files beside shards.

Works with any store that fsspec supports (`s3://`, `gs://`, `hf://` ...), web servers, and
`pipe:command`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from clipx.data.transfer import http, is_http, is_pipe, store, stream
from clipx.data.transfer.common import PATIENCE, Patience, ShardFile, retry, within
from clipx.types import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MIN_LISTED = 32  # from so many files of one folder on, a listing (1,000 names a page) is quicker
_LISTING_STALLS = 10  # deadline of a listing, in stall_seconds: 200,000 names take 200 pages
_THREADS = 16


def is_remote(text: str) -> bool:
    """True for `scheme://...` other than `file://`, and for `pipe:...`."""
    if is_pipe(text):
        return True
    return _SCHEME.match(text) is not None and not text.lower().startswith("file://")


def find(
    patterns: list[str], *, allow_pipe: bool, patience: Patience = PATIENCE
) -> list[ShardFile]:
    """Find the files of each pattern in turn; those of a glob or a folder are sorted.

    patterns: URLs without braces. Raises UserError naming a file that is missing, a store that
    refuses or a package that is not installed
    """
    # Refuse before the first request.
    for pattern in patterns:
        if is_pipe(pattern) and not allow_pipe:
            raise UserError(
                f"{pattern!r} runs a shell command; if you trust where it comes from, "
                "permit it by the setting `allow_pipe: true`"
            )
        if is_http(pattern) and ("*" in pattern or pattern.endswith("/")):
            raise UserError(
                f"{pattern}: a web server cannot be listed; "
                "name the shards by a range such as 'https://host/{00000..00127}.tar'"
            )
    # Ranges of thousands of shards: a listing first, then requests for what it lacks.
    files = _find_in_listings(patterns, patience)
    missing = [pattern for pattern in dict.fromkeys(patterns) if pattern not in files]
    pool = ThreadPoolExecutor(max_workers=_THREADS)
    try:
        looked_up = pool.map(lambda pattern: _look_up(pattern, patience), missing)
        files |= dict(zip(missing, looked_up, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # the first error ends the look-up of the others
    return [file for pattern in patterns for file in files[pattern]]


def fetch_small(url: str, *, patience: Patience = PATIENCE) -> bytes | None:
    """Read a small file. Returns None if it does not exist or may not be read.

    Raises OSError, and UserError for a store whose package is not installed.
    """
    if is_pipe(url):
        return None
    try:
        if is_http(url):
            # As for shards: fsspec's client for the web would be another dependency.
            file = ShardFile(url, size=-1, stamp="", md5="")

            def attempt() -> bytes:
                return b"".join(chunk for _, chunk in stream(file, 0, patience.stall_seconds))

            return retry(attempt, patience, url)
        return _call(url, "cat_file", patience)
    except (FileNotFoundError, PermissionError):
        # S3 answers 403 for a missing file if the folder may not be listed.
        return None


def _call(url: str, method: str, patience: Patience, *, stalls: int = 1, **options: Any) -> Any:
    """Call a method of the URL's file system with its path. Raises OSError, and UserError if fsspec
    has no file system for the URL."""
    try:
        call = getattr(store.filesystem(url), method)
    except ImportError as error:
        from fsspec.registry import known_implementations

        scheme = url.partition(":")[0]
        package = known_implementations.get(scheme, {}).get("class", scheme).partition(".")[0]
        raise UserError(
            f"{url}: {scheme}:// needs a package that is not installed ({error}); "
            f"`pip install {package}`"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{url}: {error}; fsspec reads many stores, for example s3://, gs://, hf://"
        ) from error
    path = store.path_in_store(url)
    seconds = stalls * patience.stall_seconds
    return retry(lambda: within(seconds, call, path, **options), patience, url)


def _list(pattern: str, patience: Patience) -> list[ShardFile]:
    """The files that match a glob, or the .tar files of a folder."""
    is_glob = glob.has_magic(pattern)
    method = "glob" if is_glob else "ls"
    with _explained(pattern):
        entries = _call(pattern, method, patience, stalls=_LISTING_STALLS, detail=True)
    # A store's names may lack the host, which stands before the path in the pattern.
    path = store.path_in_store(pattern)
    plain = pattern.rstrip("/")
    if path and plain.endswith(path):
        root = plain.removesuffix(path)
    else:
        root = plain.split("//")[0] + "//"
    files = []
    for info in entries.values() if is_glob else entries:  # of a glob, path -> info
        is_shard = is_glob or info["name"].endswith(".tar")
        if is_shard and info["type"] != "directory":
            files.append(store.from_info(root + info["name"], info))
    if not files:
        raise UserError(
            f"no shard matches {pattern!r}; give a folder with .tar files, a glob "
            "or a range, and check the credentials if the files are there"
        )
    return sorted(files, key=lambda file: file.url)


def _is_one_file(pattern: str) -> bool:
    """Whether a pattern names one file of an object store, or a folder without its slash."""
    if is_pipe(pattern) or is_http(pattern):
        return False
    return not (glob.has_magic(pattern) or pattern.endswith("/"))


def _find_in_listings(patterns: list[str], patience: Patience) -> dict[str, list[ShardFile]]:
    """Find single files by listing their folder, if it has many of them."""
    folders: dict[str, list[str]] = {}
    for pattern in patterns:
        if _is_one_file(pattern):
            folders.setdefault(pattern.rpartition("/")[0] + "/", []).append(pattern)
    files = {}
    for folder, members in folders.items():
        if len(members) < _MIN_LISTED:
            continue  # looked up one by one
        try:
            entries = _call(folder, "ls", patience, stalls=_LISTING_STALLS, detail=True)
        except OSError:
            continue  # a folder may not be listable; its files are looked up one by one
        infos = {info["name"]: info for info in entries if info["type"] != "directory"}
        for member in members:
            info = infos.get(store.path_in_store(member))
            if info is not None:
                files[member] = [store.from_info(member, info)]
    return files


def _look_up(pattern: str, patience: Patience) -> list[ShardFile]:
    """The files of one pattern, by requests for it alone."""
    if is_pipe(pattern):
        return [ShardFile(pattern, size=-1, stamp="", md5="")]
    with _explained(pattern):
        if is_http(pattern):
            seconds = patience.stall_seconds
            return [retry(lambda: http.find_file(pattern, seconds), patience, pattern)]
        if _is_one_file(pattern):
            info = _call(pattern, "info", patience)
            if info["type"] != "directory":
                return [store.from_info(pattern, info)]
    return _list(pattern, patience)


@contextmanager
def _explained(pattern: str) -> Iterator[None]:
    """Turn an OSError, whose text has the URL, into a UserError with its remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error}: not found; check the spelling and the endpoint") from error
    except PermissionError as error:
        raise UserError(
            f"{error}: not permitted; check the credentials of this machine for {pattern}"
        ) from error
    except OSError as error:
        raise UserError(f"{error}; check the network and the endpoint") from error
