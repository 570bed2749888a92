"""Error messages about a config: one line for each mistake, by dotted path."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

MAX_INTEGER = 2**63 - 1  # what tensors, files and JSON readers hold


def unusable_values(data: Any) -> list[str]:
    """Complaints about values that no setting can have, whatever its type."""
    return list(_unusable(data, ""))


def _unusable(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unusable(key, f"{path}: key")
            yield from _unusable(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _unusable(item, f"{path}.{number}")
    elif isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        yield f"{path}: an integer of {value.bit_length()} bits; give one of 63 bits at most"
    elif isinstance(value, str) and not _is_text(value):
        yield f"{path}: {value[:60]!r} has a character that is no text; remove it"


def _is_text(value: str) -> bool:
    """False for NUL, which no path can have, and for halves of UTF-16 pairs."""
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _shown(value: Any, limit: int = 200) -> str:
    """A value for a message: in full where it is short."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text):,} characters)"


def complaints(error: ValidationError, cls: type) -> list[str]:
    """One line for each complaint: dotted path, what is wrong, what was probably meant."""
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        kind, given = item["type"], item.get("input")
        if kind == "nested":
            lines += [f"{path}.{line}" for line in item["ctx"]["lines"]]
            if any(": unknown key" in line for line in item["ctx"]["lines"]):
                lines.append(
                    f"{path}: a new name keeps the settings that were given to another; "
                    f"`{path}: NAME` without settings drops them"
                )
        elif kind == "unexpected_keyword_argument":
            names = _fields_at(cls, item["loc"][:-1])
            lines.append(f"{path}: unknown key{did_you_mean(str(item['loc'][-1]), names)}")
        elif kind == "missing":
            lines.append(f"{path}: missing")
        else:
            shown = "" if kind == "component" else f" (given: {_shown(given)})"
            lines.append(f"{path}: {item['msg'].removeprefix('Value error, ')}{shown}")
    return lines


def _fields_at(cls: Any, loc: Sequence[int | str]) -> list[str]:
    """Field names of the dataclass that sits at `loc` below `cls`."""
    for part in loc:
        if not dataclasses.is_dataclass(cls):
            return []
        hints = {f.name: f.type for f in dataclasses.fields(cls)}
        hint = hints.get(str(part))
        if isinstance(hint, str):  # `from __future__ import annotations` makes them strings
            hint = vars(sys.modules[cls.__module__]).get(hint)
        cls = hint
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def did_you_mean(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
