"""Error messages about a config: one line for each mistake, by dotted path."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

from pydantic import ValidationError

MAX_INTEGER = 2**63 - 1  # what tensors, files and JSON readers can hold
MAX_SHOWN = 200  # characters of a value


def unusable_values(data: Any, path: str = "") -> Iterator[str]:
    """Complaints about values that no setting can have, whatever its type."""
    if isinstance(data, dict):
        for key, item in data.items():
            yield from unusable_values(key, f"{path}: key")
            yield from unusable_values(item, f"{path}.{key}".lstrip("."))
    elif isinstance(data, list | tuple):
        for number, item in enumerate(data):
            yield from unusable_values(item, f"{path}.{number}")
    elif isinstance(data, int) and not -MAX_INTEGER <= data <= MAX_INTEGER:
        # Python refuses to print an integer of more than 4,300 digits.
        yield f"{path}: an integer of {data.bit_length()} bits; give one of 63 bits at most"
    elif isinstance(data, str) and re.search("[\0\ud800-\udfff]", data):
        # NUL, which paths cannot have, or a half of a UTF-16 pair.
        yield f"{path}: {data[:60]!r} has a character that is no text; remove it"


def complaints(error: ValidationError, cls: type) -> list[str]:
    """One line for each complaint: dotted path, mistake, and the likely correction.

    cls: the class that was validated
    """
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        kind = item["type"]
        if kind == "nested":
            nested = item["ctx"]["lines"]
            lines += [f"{path}.{line}" for line in nested]
            # The key may be one of the component that the name has replaced.
            if any(": unknown key" in line for line in nested):
                lines.append(
                    f"{path}: a new name keeps the settings that were given to another; "
                    f"`{path}: NAME` without settings drops them"
                )
        elif kind == "unexpected_keyword_argument":
            *parents, key = item["loc"]
            lines.append(f"{path}: unknown key{did_you_mean(str(key), _fields_at(cls, parents))}")
        elif kind == "missing":
            lines.append(f"{path}: missing")
        elif kind == "component":
            lines.append(f"{path}: {item['msg']}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = repr(item.get("input"))
            if len(given) > MAX_SHOWN:
                given = f"{given[:MAX_SHOWN]} ... ({len(given):,} characters)"
            lines.append(f"{path}: {message} (given: {given})")
    return lines


def _fields_at(cls: Any, path: Sequence[int | str]) -> list[str]:
    """Names of the fields of the dataclass at `path` below `cls`."""
    for part in path:
        if not dataclasses.is_dataclass(cls):
            return []
        cls = get_type_hints(cls).get(str(part))
    if not dataclasses.is_dataclass(cls):
        return []
    return [field.name for field in dataclasses.fields(cls)]


def did_you_mean(word: str, names: list[str]) -> str:
    """The end of a message about an unknown name."""
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
