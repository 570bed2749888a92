"""The type of the fixture `fuzz`, which is in tests/fuzz/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis.strategies import SearchStrategy

Fuzz = Callable[[SearchStrategy[Any], Callable[[Any], None]], None]
