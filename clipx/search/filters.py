"""Conditions on metadata: `source = mdi and width >= 64 and not label ~ arrow`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from clipx.types import UserError

_COMPARISON = re.compile(r"\s*(not\s+)?(\w+)\s*(!=|<=|>=|=|<|>|~)\s*(.+?)\s*$")


def passing(condition: str, metadata: Any) -> np.ndarray:
    """Numbers of the rows that pass, (n,) int64. Raises UserError.

    condition: comparisons joined by `and`: `=`, `!=`, `<`, `<=`, `>`, `>=`, or `~` for a part of a
        text, whatever its case. `not` before one turns it around. A row without the value passes
        none.
    metadata: a pyarrow table
    """
    passes = np.ones(metadata.num_rows, dtype=np.bool_)
    for part in re.split(r"\s+and\s+", condition.strip()):
        passes &= _compare(part, metadata)
    return np.flatnonzero(passes)


def _compare(part: str, metadata: Any) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # whose functions are made when it is imported

    match = _COMPARISON.match(part)
    if match is None:
        raise UserError(
            f"filter {part!r} is not of the form `column = value`; =, !=, <, <=, >, >= and ~ "
            "compare, `and` joins"
        )
    negated, name, operator, text = match.groups()
    if name not in metadata.column_names:
        columns = ", ".join(metadata.column_names)
        raise UserError(f"filter {part!r}: there is no column {name}; there are {columns}")
    column = metadata.column(name)
    value = text.strip("'\"")
    functions = {
        "=": pc.equal,
        "!=": pc.not_equal,
        "<": pc.less,
        "<=": pc.less_equal,
        ">": pc.greater,
        ">=": pc.greater_equal,
    }
    try:
        if operator == "~":
            found = pc.match_substring(column.cast(pa.string()), value, ignore_case=True)
        else:
            scalar = pa.scalar(value).cast(column.type)
            found = functions[operator](column, scalar)
    except pa.ArrowException as error:
        raise UserError(f"filter {part!r}: {name} is {column.type}, not {value!r}") from error
    if negated:
        found = pc.invert(found)
    return np.asarray(pc.fill_null(found, False), dtype=np.bool_)
