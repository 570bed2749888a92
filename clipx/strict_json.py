"""JSON that every parser accepts: NaN and infinity, which JSON does not have, become null."""

from __future__ import annotations

import json
from typing import Any


def dumps(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    # Python's own reader is the one that knows the three constants which its writer adds to JSON.
    finite = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    return json.dumps(finite, indent=indent, allow_nan=False, ensure_ascii=ensure_ascii)
