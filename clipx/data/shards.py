"""Shards as users name them: folders, globs, `{000..127}` ranges, lists, URLs, joined by `::`."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TypeVar

from clipx.data.remote import fetch_small, find, is_remote
from clipx.data.sample_files import local_path
from clipx.data.transfer.common import ShardFile
from clipx.files import stamp_of
from clipx.types import UserError

THREADS = 32  # network file systems answer many requests at once
MAX_SHARDS = 5_000_000
_FILES_AT_ONCE = 4096
_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
S = TypeVar("S")
T = TypeVar("T")


def expand(patterns: str | list[str], *, allow_pipe: bool = False) -> list[ShardFile]:
    """Find the shards of a glob, a brace range `{000..127}` or list `{a,b}`, a folder, a URL of
    these, or a `::`-joined list of them; sorted within each.

    Raises UserError naming what matches nothing.
    """
    parts = []
    for text in [patterns] if isinstance(patterns, str) else patterns:
        # The command of a pipe may contain `::`.
        parts += [text] if text.startswith("pipe:") else text.split("::")
    files = []
    for pattern in parts:
        if is_remote(pattern):
            files += find(_expand_braces(pattern), allow_pipe=allow_pipe)
        else:
            files += _find_local(pattern)
    if not files:
        raise UserError("the list of shards is empty; name some, as in data.shards=data/*.tar")
    seen = set()
    for file in files:
        if file.url in seen:
            raise UserError(
                f"shard {file.url} is listed twice; remove one of the patterns that match it "
                "(to see it more often, give it to a second source: data.repeat, data.weights)"
            )
        seen.add(file.url)
    return files


def _find_local(pattern: str) -> list[ShardFile]:
    paths = []
    try:
        for text in _expand_braces(local_path(pattern)):
            path = Path(text)
            if glob.has_magic(text):
                matches = glob.glob(text, recursive=True)  # noqa: PTH207 absolute patterns
                paths += sorted(map(Path, matches))
            elif path.is_dir():
                paths += sorted(path.glob("*.tar"))
            else:
                paths.append(path)
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise UserError(f"shards {pattern[:200]!r} cannot be looked up: {error}") from error
    if not paths:
        raise UserError(
            f"no shard matches {pattern!r} (looked from {Path.cwd()}); "
            "give a folder of .tar files, a glob such as 'data/*.tar' "
            "or a range such as 'data/{00000..00127}.tar'"
        )
    files = []
    for start in range(0, len(paths), _FILES_AT_ONCE):
        part = paths[start : start + _FILES_AT_ONCE]
        missing = []
        for path, file in zip(part, in_threads(_local_file, part), strict=True):
            if file is None:
                missing.append(path)
            else:
                files.append(file)
        # Raised after the first part: a range with too many digits must not take minutes.
        if missing:
            others = f" and {len(missing) - 1} more of {len(paths)} do" if missing[1:] else " does"
            raise UserError(f"shard {missing[0]}{others} not exist (looked from {Path.cwd()})")
    return files


def _local_file(path: Path) -> ShardFile | None:
    """Describe a file or folder. Returns None if there is none. Raises UserError."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL or an unpaired surrogate
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"shard {str(path)!r} cannot be read: {reason}") from error
    if not (S_ISREG(status.st_mode) or S_ISDIR(status.st_mode)):
        raise UserError(f"shard {path} is not a regular file; copy its content to one")
    return ShardFile(str(path), status.st_size, stamp_of(status), "")


def _expand_braces(text: str) -> list[str]:
    """Expand `{08..10}` to 08, 09, 10 and `{a,b}` to a, b; other braces stay. Raises UserError for
    more names than a corpus can have shards."""
    parts: list[Iterable[str]] = []
    count = 1
    for number, piece in enumerate(_BRACES.split(text)):
        if number % 2 == 0:  # between two pairs of braces
            parts.append([piece])
            continue
        choices: Iterable[str] = [f"{{{piece}}}"]
        if "," in piece:
            choices = piece.split(",")
            count *= len(choices)
        elif match := _RANGE.fullmatch(piece):
            low, high = match.groups()
            if max(len(low), len(high)) > 12:
                count = MAX_SHARDS + 1
            elif numbers := range(int(low), int(high) + 1):  # {9..0} is left as it is
                width = len(low) if low.startswith("0") else 0
                # A lazy map: the names of `{0..99999999999}` would not fit into memory.
                choices = map(f"{{:0{width}d}}".format, numbers)
                count *= len(numbers)
        parts.append(choices)
    if count > MAX_SHARDS or len(parts) > 100:  # 50 pairs of braces
        raise UserError(f"{text[:100]!r} names more than {MAX_SHARDS:,} shards; list a folder")
    return ["".join(names) for names in product(*parts)]


def declared_sizes(files: list[ShardFile]) -> dict[str, int]:
    """Number of samples of each remote shard by its URL, from the `sizes.json` beside it.

    open_clip's users have this file: {"00000.tar": 10000, ...}. With it, a shard need not be
    downloaded before the run starts.
    """
    folders = set()
    for file in files:
        if not file.url.startswith("pipe:"):  # which has no folder
            folders.add(file.url.rpartition("/")[0])
    sizes: dict[str, int] = {}
    for folder in sorted(folders):
        content = fetch_small(f"{folder}/sizes.json")
        if not content:
            continue
        try:
            for name, size in json.loads(content).items():
                # `type`, since a bool is an int as well; 2^31, since an index counts in int32.
                if type(size) is not int or not 0 <= size < 2**31:
                    raise ValueError(f"{str(size)[:50]} is not a number of samples")
                sizes[f"{folder}/{name}"] = size
        except (AttributeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{folder}/sizes.json is not an object of shard names and numbers of samples "
                f"({error}); correct or remove it"
            ) from error
    return sizes


def in_threads(act: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Apply `act` to all items, many at a time, in their order."""
    listed = list(items)
    if len(listed) < THREADS:
        return [act(item) for item in listed]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(act, listed, chunksize=16))
