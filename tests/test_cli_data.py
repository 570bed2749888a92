"""`clipx data` prints any name of a file or sample."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from samples import pair, write_shard

from clipx import cli

ODD_SHARDS = [os.fsdecode(b"caf\xe9.tar"), "a\nb.tar", "[bold].tar", ":smile:.tar", "\x1b[2J.tar"]
ODD_KEYS = ["[/bold]", "a\nb", ":smile:", os.fsdecode(b"\xff"), "[red]"]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A bad sample under each key, and a good one beside it."""
    for name, key in zip(ODD_SHARDS, ODD_KEYS, strict=True):
        path = tmp_path / "shards" / name
        write_shard(path, {"good": pair(1), key: {"png": key.encode("utf-8", "replace")}})
    return tmp_path / "shards"


def test_index_shows_names_as_they_are(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in odd.glob("*.tar"):
        path.write_bytes(b"<html>" * 100)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["data", "index", str(odd)])
    printed = capsys.readouterr().out
    faults = [line for line in printed.splitlines() if line.startswith(f"{odd}/")]
    assert len(faults) == len(ODD_SHARDS)
    for shown in (r"caf\udce9.tar", r"a\nb.tar", "[bold].tar", ":smile:.tar", r"\x1b[2J.tar"):
        assert f"{odd}/{shown}: shard" in printed


@pytest.mark.parametrize("number", range(len(ODD_KEYS)))
def test_verify_shows_names_as_they_are(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    for name in ODD_SHARDS:
        if name != ODD_SHARDS[number]:
            (odd / name).unlink()
    with pytest.raises(SystemExit, match="1"):
        cli.main(
            ["data", "verify", str(odd), "--out", str(tmp_path / "bad.jsonl"), "--workers", "0"]
        )
    printed = "".join(capsys.readouterr().out.split())
    assert ["[/bold]", r"a\nb", ":smile:", r"\udcff", "[red]"][number] in printed
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) >= 1
