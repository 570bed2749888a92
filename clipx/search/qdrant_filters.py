"""Conditions on metadata as filters of Qdrant, with the meaning that `filters.py` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipx.search.filters import Comparison, parse_condition
from clipx.types import UserError

LOWER = "clipx_lower"
"""Field of a payload with its texts in lower case: Qdrant compares parts of texts by case."""
_RANGES = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def qdrant_filter(condition: str, columns: Mapping[str, str]) -> Any:
    """A `qdrant_client.models.Filter`. Raises UserError.

    condition: as for `filters.parse_condition`; columns: name -> type, as pyarrow writes it
    """
    from qdrant_client import models

    must = []
    must_not = []
    for comparison in parse_condition(condition, list(columns)):
        kind = columns[comparison.column]
        is_negated = comparison.is_negated != (comparison.operator == "!=")
        if not is_negated:
            must.append(_field_condition(comparison, kind))
            continue
        must_not.append(_field_condition(comparison, kind))
        # A row without the value passes none, and Qdrant's `must_not` lets it pass.
        empty = models.PayloadField(key=comparison.column)
        must_not.append(models.IsEmptyCondition(is_empty=empty))
    return models.Filter(must=must, must_not=must_not)


def _field_condition(comparison: Comparison, kind: str) -> Any:
    """What holds where a comparison does, without its negation. Raises UserError."""
    from qdrant_client import models

    name = comparison.column
    if comparison.operator == "~":
        if kind != "string":
            raise UserError(
                f"filter {comparison.text!r}: {name} is {kind}, and in Qdrant ~ compares texts "
                "alone; use =, < or >"
            )
        part = models.MatchSubstring(substring=comparison.value.lower())
        return models.FieldCondition(key=f"{LOWER}.{name}", match=part)
    value = _typed(comparison, kind)
    if comparison.operator in _RANGES:
        if isinstance(value, str | bool):
            raise UserError(
                f"filter {comparison.text!r}: {name} is {kind}, and Qdrant orders numbers alone; "
                "use =, != or ~"
            )
        bound = {_RANGES[comparison.operator]: value}
        return models.FieldCondition(key=name, range=models.Range(**bound))
    if isinstance(value, float):  # Qdrant has no equality of floats
        return models.FieldCondition(key=name, range=models.Range(gte=value, lte=value))
    return models.FieldCondition(key=name, match=models.MatchValue(value=value))


def _typed(comparison: Comparison, kind: str) -> str | bool | int | float:
    """The value in the type of its column. Raises UserError."""
    import pyarrow as pa

    try:
        return pa.scalar(comparison.value).cast(pa.type_for_alias(kind)).as_py()
    except (pa.ArrowException, ValueError) as error:
        raise UserError(
            f"filter {comparison.text!r}: {comparison.column} is {kind}, not {comparison.value!r}"
        ) from error
