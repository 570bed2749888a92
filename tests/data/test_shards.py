"""Shards are files as the user writes them."""

from __future__ import annotations

import os
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
        ("file://a/0.tar", "'a' is read as the name of a machine; write three slashes"),
        ("a/{0..99999999}.tar", "names more than 5,000,000 shards"),
        ("{0..9}" * 30, "names more than"),
        ("{0..0}" * 3000, "names more than"),
        ("{1.." + "9" * 5000 + "}", "names more than"),
    ],
)
def test_a_pattern_without_shards_is_named(
    folder: Path, pattern: str | list[str], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        expand(pattern)


@pytest.mark.parametrize(
    "pattern", ["{0..99999999999}.tar", "{0..9}" * 30, "{a,b}" * 40, "{9..0}{0..99999999999}"]
)
def test_more_names_than_any_corpus_has_are_refused_at_once(pattern: str) -> None:
    with pytest.raises(UserError, match="names more than 5,000,000 shards"):
        expand(pattern)


def test_file_urls_are_paths(folder: Path) -> None:
    (folder / "with space").mkdir()
    (folder / "with space/0.tar").touch()
    urls = (f"file://{folder}/a/{{0..1}}.tar", f"file://localhost{folder}/with%20space/*.tar")
    files = [file.url for url in urls for file in expand(url)]
    assert files == [f"{folder}/a/0.tar", f"{folder}/a/1.tar", f"{folder}/with space/0.tar"]


def test_a_named_pipe_is_no_shard(folder: Path) -> None:
    os.mkfifo(folder / "a/3.tar")
    with pytest.raises(UserError, match=r"shard a/3\.tar is not a regular file"):
        expand("a")
