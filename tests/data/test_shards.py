"""Shards are found as the user writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipx.data.shards import expand
from clipx.types import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "a/0.tar",
        "a/1.tar",
        "a/2.tar",
        "a/notes.txt",
        "b/008.tar",
        "b/009.tar",
        "b/010.tar",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", ["a/0.tar", "a/1.tar", "a/2.tar"]),
        ("a/1.tar", ["a/1.tar"]),
        ("a/[12].tar", ["a/1.tar", "a/2.tar"]),
        ("**/0*.tar", ["a/0.tar", "b/008.tar", "b/009.tar", "b/010.tar"]),
        ("a/{0..2}.tar", ["a/0.tar", "a/1.tar", "a/2.tar"]),
        ("b/{008..010}.tar", ["b/008.tar", "b/009.tar", "b/010.tar"]),
        ("a/{0..1}.tar::b/{008,010}.tar", ["a/0.tar", "a/1.tar", "b/008.tar", "b/010.tar"]),
        ("b/009.tar::a/{0..1}.tar", ["b/009.tar", "a/0.tar", "a/1.tar"]),
        (["a/2.tar", "b/0*.tar"], ["a/2.tar", "b/008.tar", "b/009.tar", "b/010.tar"]),
    ],
)
def test_patterns_name_shards_in_sorted_order(
    folder: Path, pattern: str | list[str], expected: list[str]
) -> None:
    assert [file.url for file in expand(pattern)] == expected


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("c/*.tar", r"no shard matches 'c/\*\.tar' \(looked from /"),
        ("a::c/*.tar", r"no shard matches 'c/\*\.tar'"),
        ("missing.tar", r"shard missing\.tar does not exist"),
        ("b/0{0..1}{0..9}.tar::a", r"shard b/000\.tar and 16 more of 20 do not exist"),
        ("a::a/1.tar", r"shard a/1\.tar is listed twice"),
        ("", "no shard matches ''"),
    ],
)
def test_a_pattern_without_shards_is_named(
    folder: Path, pattern: str | list[str], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        expand(pattern)


@pytest.mark.parametrize("pattern", ["{0..99999999999}.tar", "{0..9}" * 30, "{a,b}" * 40])
def test_more_names_than_any_corpus_has_are_refused_at_once(pattern: str) -> None:
    with pytest.raises(UserError, match="1,000,000 are the most that clipx opens"):
        expand(pattern)
