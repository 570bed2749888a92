"""Remote shards: what a pattern stands for in a store, and the small files beside shards.

Any store that fsspec knows (`s3://`, `gs://`, `hf://` ...), web servers, and `pipe:command`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from clipx.data.transfer import http, is_http, is_pipe, store, stream
from clipx.data.transfer.common import PATIENCE, Patience, Refused, ShardFile, retry, within
from clipx.types import UserError

T = TypeVar("T")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LIST_FROM = 32  # files of one folder that are looked up by listing it: a page has 1000 names
_THREADS = 16
_LISTING = 10  # times as patient with a listing: of 200,000 names, it takes 200 pages


def is_remote(text: str) -> bool:
    """True for `scheme://...` other than `file://`, and for `pipe:...`."""
    if is_pipe(text):
        return True
    return _SCHEME.match(text) is not None and not text.lower().startswith("file://")


def find(
    patterns: list[str], *, allow_pipe: bool, patience: Patience = PATIENCE
) -> list[ShardFile]:
    """The files of each pattern in turn: of a glob or a folder in sorted order, else the one.

    patterns: URLs without braces. Raises UserError naming what is not there, not permitted or not
    installed
    """
    found: dict[str, list[ShardFile]] = {}
    single: list[str] = []
    for pattern in dict.fromkeys(patterns):
        if is_pipe(pattern):
            found[pattern] = [_piped(pattern, allow_pipe)]
        elif _is_plural(pattern):
            found[pattern] = _listed(pattern, patience)
        else:
            single.append(pattern)
    found |= _from_parents(single, patience)
    missing = [pattern for pattern in single if pattern not in found]
    pool = ThreadPoolExecutor(max_workers=_THREADS)
    try:
        looked = pool.map(lambda pattern: _looked_up(pattern, patience), missing)
        found |= dict(zip(missing, looked, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # the first that is missing ends it
    return [file for pattern in patterns for file in found[pattern]]


def fetch_small(url: str, *, patience: Patience = PATIENCE) -> bytes | None:
    """The content of a small file; None where there is none, or none for us: S3 answers 403 for a
    missing file to whom may not list the folder. Raises OSError, and UserError for a store whose
    package is not installed."""

    def attempt() -> bytes:
        if is_http(url):
            file = ShardFile(url, size=-1, stamp="", md5="")
            return b"".join(chunk for _, chunk in stream(file, 0, patience.stall_seconds))
        call = _store(url).cat_file
        return within(patience.stall_seconds, call, store.path_in_store(url))

    if is_pipe(url):
        return None
    try:
        return retry(attempt, patience, url)
    except (FileNotFoundError, PermissionError):
        return None


def _piped(pattern: str, allowed: bool) -> ShardFile:
    if not allowed:
        raise UserError(
            f"{pattern!r} runs a shell command; if you trust where it comes from, "
            "permit it by the setting `allow_pipe: true`"
        )
    return ShardFile(pattern, size=-1, stamp="", md5="")


def _is_plural(pattern: str) -> bool:
    """A glob or a folder. Raises UserError where it is on a web server."""
    if not is_http(pattern):
        return glob.has_magic(pattern) or pattern.endswith("/")
    if "*" in pattern or pattern.endswith("/"):
        raise UserError(
            f"{pattern}: a web server cannot be listed; "
            "name the shards by a range such as 'https://host/{00000..00127}.tar'"
        )
    return False


def _listed(pattern: str, patience: Patience) -> list[ShardFile]:
    """The files that match a glob, or the .tar files of a folder."""
    with _explained(pattern):
        fs, path = _store(pattern), store.path_in_store(pattern)
        seconds = _LISTING * patience.stall_seconds
        if glob.has_magic(pattern):
            found = retry(lambda: within(seconds, fs.glob, path, detail=True), patience, pattern)
            infos = list(found.values())
        else:
            found = retry(lambda: within(seconds, fs.ls, path, detail=True), patience, pattern)
            infos = [info for info in found if info["name"].endswith(".tar")]
        files = [info for info in infos if info["type"] != "directory"]
        if not files:
            raise UserError(
                f"no shard matches {pattern!r}; give a folder with .tar files, a glob "
                "or a range, and check the credentials if the files are there"
            )
    at = _address(pattern)
    return sorted((store.from_info(at(i["name"]), i) for i in files), key=lambda file: file.url)


def _address(url: str) -> Callable[[str], str]:
    """From the names that a store gives to URLs written like this one: some names have no host."""
    path = store.path_in_store(url)
    plain = url.rstrip("/")
    root = (
        plain.removesuffix(path) if path and plain.endswith(path) else plain.split("//")[0] + "//"
    )
    return lambda name: root + name


def _from_parents(patterns: list[str], patience: Patience) -> dict[str, list[ShardFile]]:
    """Those of many files in one folder that its listing has. The others are looked up alone, as
    all are where a folder cannot be listed."""
    folders: dict[str, list[str]] = {}
    for pattern in patterns:
        if not is_http(pattern):
            folders.setdefault(pattern.rpartition("/")[0] + "/", []).append(pattern)
    found = {}
    for folder, members in folders.items():
        if len(members) < _LIST_FROM:
            continue
        seconds = _LISTING * patience.stall_seconds
        ls, path = _store(folder).ls, store.path_in_store(folder)
        try:
            infos = retry(partial(within, seconds, ls, path, detail=True), patience, folder)
        except OSError:
            continue  # why, the single files will tell
        files = {info["name"]: info for info in infos if info["type"] != "directory"}
        for member in members:
            if (info := files.get(store.path_in_store(member))) is not None:
                found[member] = [store.from_info(member, info)]
    return found


def _looked_up(pattern: str, patience: Patience) -> list[ShardFile]:
    """A single file, or the .tar files of what turns out to be a folder."""
    with _explained(pattern):
        if is_http(pattern):
            return [retry(lambda: _http_head(pattern, patience.stall_seconds), patience, pattern)]
        info, path = _store(pattern).info, store.path_in_store(pattern)
        told: Mapping[str, Any] = retry(
            lambda: within(patience.stall_seconds, info, path), patience, pattern
        )
    if told["type"] == "directory":
        return _listed(pattern, patience)
    return [store.from_info(pattern, told)]


def _http_head(url: str, stall_seconds: float) -> ShardFile:
    try:
        with http.http_open(url, stall_seconds, method="HEAD", headers={}) as answer:
            return http.described(url, answer)
    except (PermissionError, Refused):  # as a URL is answered that is signed for GET alone
        first = {"Range": "bytes=0-0"}
        with http.http_open(url, stall_seconds, headers=first) as answer:
            return http.described(url, answer)


def _store(url: str) -> Any:
    """The fsspec file system. Raises UserError where fsspec cannot give one."""
    try:
        return store.filesystem(url)
    except ImportError as error:
        from fsspec.registry import known_implementations

        name = url.partition(":")[0]
        package = known_implementations.get(name, {}).get("class", name).partition(".")[0]
        raise UserError(
            f"{url}: {name}:// needs a package that is not installed ({error}); "
            f"`pip install {package}`"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{url}: {error}; what fsspec reads is known, for example s3://, gs://, hf://, https://"
        ) from error


@contextmanager
def _explained(pattern: str) -> Iterator[None]:
    """Turns what went wrong into a UserError with its remedy. The errors name the URL."""
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
