"""Conditions on metadata: `source = mdi and width >= 64 and not label ~ arrow`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipx.types import UserError

_COMPARISON = re.compile(r"\s*(not\s+)?(\w+)\s*(!=|<=|>=|=|<|>|~)\s*(.+?)\s*$")


@dataclass(frozen=True)
class Comparison:
    """One part of a condition. text: as it was written; is_negated: `not` is before it"""

    text: str
    column: str
    operator: str
    value: str
    is_negated: bool


def parse_condition(condition: str, columns: Sequence[str]) -> list[Comparison]:
    """The comparisons that all have to hold. Raises UserError.

    condition: comparisons joined by `and`: `=`, `!=`, `<`, `<=`, `>`, `>=`, or `~` for a part of a
        text, whatever its case. `not` before one turns it around. A row without the value passes
        none.
    columns: of the metadata
    """
    comparisons = []
    for part in re.split(r"\s+and\s+", condition.strip()):
        match = _COMPARISON.match(part)
        if match is None:
            raise UserError(
                f"filter {part!r} is not of the form `column = value`; =, !=, <, <=, >, >= and ~ "
                "compare, `and` joins"
            )
        negated, name, operator, value = match.groups()
        if name not in columns:
            raise UserError(
                f"filter {part!r}: there is no column {name}; there are {', '.join(columns)}"
            )
        value = value.strip("'\"")
        comparisons.append(Comparison(part, name, operator, value, negated is not None))
    return comparisons


def passing(condition: str, metadata: Any) -> np.ndarray:
    """Numbers of the rows that pass, (n,) int64. Raises UserError.

    condition: see `parse_condition`; metadata: a pyarrow table
    """
    passes = np.ones(metadata.num_rows, dtype=np.bool_)
    for comparison in parse_condition(condition, metadata.column_names):
        passes &= _compare(comparison, metadata.column(comparison.column))
    return np.flatnonzero(passes)


def _compare(comparison: Comparison, column: Any) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # whose functions are made when it is imported

    functions = {
        "=": pc.equal,
        "!=": pc.not_equal,
        "<": pc.less,
        "<=": pc.less_equal,
        ">": pc.greater,
        ">=": pc.greater_equal,
    }
    value = comparison.value
    try:
        if comparison.operator == "~":
            found = pc.match_substring(column.cast(pa.string()), value, ignore_case=True)
        else:
            scalar = pa.scalar(value).cast(column.type)
            found = functions[comparison.operator](column, scalar)
    except pa.ArrowException as error:
        name = comparison.column
        raise UserError(
            f"filter {comparison.text!r}: {name} is {column.type}, not {value!r}"
        ) from error
    if comparison.is_negated:
        found = pc.invert(found)
    return np.asarray(pc.fill_null(found, False), dtype=np.bool_)
