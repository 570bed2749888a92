"""JSON without NaN and infinity, which other programs refuse."""

from __future__ import annotations

import json
import math

from clipx import strict_json


def test_what_is_not_finite_is_null() -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 2, None, "x")}]}
    text = strict_json.dumps(value)
    assert "NaN" not in text
    assert json.loads(text) == {"a": None, "b": [1.5, None, {"c": [None, 2, None, "x"]}]}
