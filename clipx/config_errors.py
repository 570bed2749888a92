"""Error messages about a config: one line for each mistake, by dotted path."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from clipx import open_clip_flags

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


def explained(message: str) -> PydanticCustomError:
    """An error with a complete message, to which `complaints` adds nothing."""
    return PydanticCustomError("explained", "{message}", {"message": message})


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
            lines.append(f"{path}: unknown key{_hint_for_key(cls, item['loc'], item['input'])}")
        elif kind == "missing":
            lines.append(f"{path}: missing")
        elif kind == "explained":
            lines.append(f"{path}: {item['msg']}{_hint_for_value(cls, item)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            if kind == "dataclass_type":
                message = "it is a group of settings"
            given = repr(item.get("input"))
            if len(given) > MAX_SHOWN:
                given = f"{given[:MAX_SHOWN]} ... ({len(given):,} characters)"
            lines.append(f"{path}: {message} (given: {given}){_hint_for_value(cls, item)}")
    return lines


def _hint_for_key(cls: type, location: Sequence[int | str], value: Any) -> str:
    """The end of a message about an unknown key: the key that was probably meant."""
    *parents, key = location
    name = str(key)
    siblings = _fields_at(cls, parents)
    # A letter too many or too few, before a setting of another part that has the very name.
    if difflib.get_close_matches(name, siblings, n=1, cutoff=0.8):
        return did_you_mean(name, siblings)
    # In another config than that of a run these settings would lead nowhere.
    if "global_batch_size" in _fields_at(cls, []):
        text = "" if isinstance(value, dict | list) else str(value)
        setting = open_clip_flags.setting_for(name, text)
        if setting is not None:
            return f"; in clipx: {setting}"
    elsewhere = [path for path in _paths(cls) if path.rpartition(".")[2] == name]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return did_you_mean(name, siblings)


def _hint_for_value(cls: type, item: ErrorDetails) -> str:
    """The end of a message about a wrong value; empty where nothing is known."""
    value = item["input"]
    if not isinstance(value, str):
        return ""
    path = ".".join(str(part) for part in item["loc"])
    hint = None
    if path == "precision" and value in open_clip_flags.VALUES["precision"]:
        hint = open_clip_flags.setting_for("precision", value)
    elif path == "model.initial" and value and "did you mean" not in item["msg"]:
        hint = open_clip_flags.initial_for(value)
    elif item["type"] == "dataclass_type" and (fields := _fields_at(cls, item["loc"])):
        # A part was given a plain value, which is mostly one for its first setting.
        hint = f"{path}.{fields[0]}={value}"
    return f"; write {hint}" if hint else ""


def _fields_at(cls: Any, path: Sequence[int | str]) -> list[str]:
    """Names of the fields of the dataclass at `path` below `cls`."""
    for part in path:
        cls = _dataclass_of(get_type_hints(cls).get(str(part)))
        if cls is None:
            return []
    return [field.name for field in dataclasses.fields(cls)]


def _dataclass_of(kind: Any) -> Any:
    """A dataclass as it is, or that of `X | None`; None for other types."""
    for option in (kind, *get_args(kind)):
        if dataclasses.is_dataclass(option):
            return option
    return None


def _paths(cls: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all settings of a dataclass and of the dataclasses in it."""
    for name, kind in get_type_hints(cls).items():
        yield f"{prefix}{name}"
        if (part := _dataclass_of(kind)) is not None:
            yield from _paths(part, f"{prefix}{name}.")


def did_you_mean(word: str, names: list[str]) -> str:
    """The end of a message about an unknown name."""
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
