"""Any pattern of shards gives shards or is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from fuzzing import Fuzz
from hypothesis import strategies as st

from clipx.data import shards
from clipx.data.shards import expand
from clipx.types import UserError

PIECES = st.sampled_from(
    [
        *("{", "}", "{0..9}", "{000..127}", "{9..0}", "{a,b}", "{,}", "..", ",", "::", "*", "**"),
        *("{0..99999999999}", "{" + "9" * 400 + ".." + "9" * 400 + "}", "[", "]", "?", "~"),
        *("a.tar", ".tar", "file:", "a" * 300, "\0", "\ud800", "pipe:", "?versionId=", "%00"),
    ]
)


def test_shard_patterns(fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "MAX_SHARDS", 10_000)  # millions take minutes here
    Path("a.tar").touch()

    def check(text: str) -> None:
        with contextlib.suppress(UserError):
            assert expand(text)

    # No slash, since `/**` is a valid pattern that walks the whole disk.
    texts = PIECES | st.text(st.characters(blacklist_characters="/"), max_size=4)
    fuzz(st.lists(texts, max_size=12).map("".join), check)
