"""YAML text of a config, as a person or a broken disk may leave it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fuzzing import Fuzz
from hypothesis import strategies as st

from clipx.config import read_layers
from clipx.types import UserError

PIECES = st.sampled_from(
    [
        *("a: 1\n", "b:\n  c: 2\n", "extends: x.yaml\n", "- 1\n", "{", "}", "[", "]", "<<: ", ": "),
        *("&x ", "*x ", "!!int ", "!!timestamp 2024-99-99\n", "2024-99-99\n", "%TAG ! x\n"),
        *("\t", "'", '"', "|\n", "---\n", "\x00", "\u2028", "\ufeff"),
    ]
)
TEXT = st.one_of(st.text(), st.lists(PIECES | st.text(max_size=5)).map("".join))


def test_yaml_text(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"

    def check(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with contextlib.suppress(UserError):
            assert isinstance(read_layers(path), dict)

    fuzz(TEXT, check)
