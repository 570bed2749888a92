"""Where two configs differ, and how values are shown in messages about it."""

from __future__ import annotations

from typing import Any


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths at which the data of two configs differ."""
    paths = []
    for key in dict.fromkeys([*a, *b]):
        left = a.get(key)
        right = b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            paths += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            paths.append(f"{prefix}{key}")
    return paths


def setting_at(data: dict[str, Any], path: str) -> Any:
    """The value at a dotted path of a config's data; None if there is none."""
    value: Any = data
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def short(value: Any) -> str:
    """A value in a message about a difference, of 60 characters at most."""
    if isinstance(value, float):
        return f"{value:.9g}"
    text = "unset" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
