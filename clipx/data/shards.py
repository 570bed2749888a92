"""Shards as users name them: folders, globs, `{000..127}` ranges, lists, URLs, joined by `::`."""

from __future__ import annotations

import glob
import json
import math
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, TypeVar

from clipx.data.files import local_path
from clipx.data.index import stamp_of
from clipx.data.remote import fetch_small, find, is_remote
from clipx.data.transfer.common import ShardFile
from clipx.types import UserError

THREADS = 32
"""Of file systems on a network, which answer many questions at once."""
MOST_SHARDS = 5_000_000
_FILES_AT_ONCE = 4096
_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
S = TypeVar("S")
T = TypeVar("T")


def expand(patterns: str | list[str], *, allow_pipe: bool = False) -> list[ShardFile]:
    """The shards of a glob, a brace range `{000..127}` or list `{a,b}`, a folder, a URL of these,
    or a `::`-joined list of them; in sorted order each.

    Raises UserError naming what matches nothing.
    """
    found: list[ShardFile] = []
    for part in _parts(patterns):
        if is_remote(part):
            found += find(_expand_braces(part), allow_pipe=allow_pipe)
        else:
            found += _local(part, _expand_braces(local_path(part)))
    if not found:
        raise UserError("the list of shards is empty; name some, as in data.shards=data/*.tar")
    seen: set[str] = set()
    for file in found:
        if file.url in seen:
            raise UserError(
                f"shard {file.url} is listed twice; remove one of the patterns that match it "
                "(to see it more often, give it to a second source: data.repeat, data.weights)"
            )
        seen.add(file.url)
    return found


def _parts(patterns: str | list[str]) -> list[str]:
    """A pipe's command may have `::` in it, so it is never cut."""
    listed = [patterns] if isinstance(patterns, str) else patterns
    return [
        p for text in listed for p in ([text] if text.startswith("pipe:") else text.split("::"))
    ]


def _local(part: str, texts: list[str]) -> list[ShardFile]:
    try:
        paths = [path for text in texts for path in _expand_one(text)]
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise UserError(f"shards {part[:200]!r} cannot be looked up: {error}") from error
    if not paths:
        raise UserError(
            f"no shard matches {part!r} (looked from {Path.cwd()}); "
            "give a folder of .tar files, a glob such as 'data/*.tar' "
            "or a range such as 'data/{00000..00127}.tar'"
        )
    found: list[ShardFile] = []
    for start in range(0, len(paths), _FILES_AT_ONCE):
        part_of = paths[start : start + _FILES_AT_ONCE]
        files = in_threads(_local_file, part_of)
        missing = [path for path, file in zip(part_of, files, strict=True) if file is None]
        if missing:  # at the first part: a range with too many digits must not take minutes
            more = f" and {len(missing) - 1} more of {len(paths)} do" if missing[1:] else " does"
            raise UserError(f"shard {missing[0]}{more} not exist (looked from {Path.cwd()})")
        found += [file for file in files if file is not None]
    return found


def _local_file(path: Path) -> ShardFile | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL, or a character that is no text
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"shard {str(path)!r} cannot be read: {why}") from error
    if not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):
        raise UserError(f"shard {path} is not a regular file; copy its content to one")
    return ShardFile(str(path), stat.st_size, stamp_of(stat), "")


def _expand_one(text: str) -> list[Path]:
    path = Path(text)
    if glob.has_magic(text):
        return sorted(Path(name) for name in glob.glob(text, recursive=True))  # noqa: PTH207 absolute patterns
    return sorted(path.glob("*.tar")) if path.is_dir() else [path]


def _expand_braces(text: str) -> list[str]:
    """Raises UserError for more names than anybody has shards."""
    count = math.prod(_count_choices(match[1]) for match in _BRACES.finditer(text))
    if count > MOST_SHARDS or text.count("{") > 50:
        raise UserError(f"{text[:100]!r} names more than {MOST_SHARDS:,} shards; list a folder")
    match = next((m for m in _BRACES.finditer(text) if _choices(m[1])), None)
    if match is None:
        return [text]
    before, after = text[: match.start()], text[match.end() :]
    return [before + choice + end for choice in _choices(match[1]) for end in _expand_braces(after)]


def _count_choices(inside: str) -> int:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.count(",") + 1
    if max(map(len, match.groups())) > 12:
        return MOST_SHARDS + 1
    return max(1, int(match[2]) - int(match[1]) + 1)  # {9..0} stays as it is


def _choices(inside: str) -> list[str]:
    """`08..10` -> 08, 09, 10; `a,b` -> a, b; none where these are no braces of ours."""
    if match := _RANGE.fullmatch(inside):
        low, high = match.groups()
        width = len(low) if low.startswith("0") else 0
        return [f"{n:0{width}d}" for n in range(int(low), int(high) + 1)]
    return inside.split(",") if "," in inside else []


def told_sizes(files: list[ShardFile]) -> dict[str, int]:
    """Samples of each remote shard by the `sizes.json` beside it, by URL: known without reading it.

    That is the file of open_clip's users: {"00000.tar": 10000, ...}.
    """
    folders = {file.url.rpartition("/")[0] for file in files if not file.url.startswith("pipe:")}
    told: dict[str, int] = {}
    for folder in sorted(folders):
        content = fetch_small(f"{folder}/sizes.json")
        try:
            sizes = json.loads(content) if content else {}
            told |= {f"{folder}/{name}": _count(value) for name, value in sizes.items()}
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{folder}/sizes.json is not an object of shard names and numbers of samples "
                f"({error}); mend or remove it"
            ) from error
    return told


def _count(value: Any) -> int:
    """Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{str(value)[:50]} is no number of samples")
    return value


def in_threads(act: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """`act` of all items, many at a time."""
    listed = list(items)
    if len(listed) < THREADS:
        return [act(item) for item in listed]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(act, listed, chunksize=16))
