"""Which text of a sample is its caption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipx.data.sample import Raw, SampleError

FALLBACK = "txt"
MAX_CHARACTERS = 50_000
"""Of one text: a hundred times what models see of it. Mending the worst of twice as many, a row of
accents, takes 10 s, growing with the square."""


@dataclass(frozen=True)
class Caption:
    """What a sample may be called: groups of texts, each with the weight of its field."""

    groups: tuple[tuple[float, tuple[str, ...]], ...]

    @property
    def texts(self) -> list[str]:
        return [text for _, texts in self.groups for text in texts]

    def draw(self, number: float) -> str:
        """number: uniform in [0, 1). A field by its weight, then one of its texts, all alike."""
        place = number * sum(weight for weight, _ in self.groups)
        for weight, texts in self.groups:
            if place < weight:
                return texts[int(place / weight * len(texts))]
            place -= weight
        return self.groups[-1][1][-1]  # rounding: the sum of the weights is not exact


@dataclass(frozen=True)
class CaptionFields:
    """weights: field name -> how often it is drawn where a sample has several of them. A sample
    that has none of them falls back to `txt`."""

    weights: Mapping[str, float]

    def of(self, raw: Raw) -> Caption:
        """Raises SampleError where there is no caption."""
        fields: dict[str, Any] | None = None  # of the .json member, parsed once and when needed
        groups = []
        for name, weight in self.weights.items():
            if name in raw.text and name != "json":
                value = raw.text[name]
            else:
                fields = _json_fields(raw) if fields is None else fields
                value = fields.get(name)
            if texts := _texts(value):
                groups.append((weight, texts))
        if not groups and (texts := _texts(raw.text.get(FALLBACK))):
            groups.append((1.0, texts))
        if groups:
            return Caption(tuple(groups))
        wanted = " or ".join(dict.fromkeys([*self.weights, FALLBACK]))
        there = ", ".join(dict.fromkeys([*raw.text, *(fields or {})])) or "none"
        raise SampleError("caption", f"no text in {wanted}; fields there: {there}")

    @staticmethod
    def names(raw: Raw) -> set[str]:
        """The fields of a sample that hold text. Raises SampleError."""
        named = {**_json_fields(raw), **{k: v for k, v in raw.text.items() if k != "json"}}
        return {name for name, value in named.items() if _texts(value)}


def _json_fields(raw: Raw) -> dict[str, Any]:
    if "json" not in raw.text:
        return {}
    try:
        value = json.loads(raw.text["json"])
    except (ValueError, RecursionError) as error:
        raise SampleError("caption", f"the .json member does not parse: {error}") from error
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> tuple[str, ...]:
    """The non-empty texts of a field: one text, UTF-8 bytes or a list of texts."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SampleError("caption", f"not UTF-8: {error}") from error
    listed = value if isinstance(value, list) else [value]
    longest = max((len(text) for text in listed if isinstance(text, str)), default=0)
    if longest > MAX_CHARACTERS:
        raise SampleError(
            "caption", f"a text of {longest:,} characters; at most {MAX_CHARACTERS:,}"
        )
    if any(isinstance(text, bytes) for text in listed):
        raise SampleError("caption", "a text of the list is not UTF-8")
    stripped = (text.strip() for text in listed if isinstance(text, str))
    return tuple(text for text in stripped if text)
