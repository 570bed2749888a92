"""The Python blocks of docs/python.md, run from the first to the last in one folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ranks import ROOT
from tiny_runs import write_config, write_corpus

import clipx

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)


def test_the_blocks_of_the_python_page_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "configs/run", write_corpus(tmp_path / "corpus"))
    config.rename(tmp_path / "configs/run/demo_tiny.yaml")
    clipx.train("configs/run/demo_tiny.yaml", "duration=1 steps", "run_dir=runs/demo")
    Path("examples").symlink_to(ROOT / "examples")
    names: dict[str, Any] = {}
    shapes = []
    for block in BLOCKS[:2]:
        exec(block, names)
    shapes = [tuple(names[name].shape) for name in ("image", "text", "cosine", "probability")]
    assert shapes == [(2, 16), (2, 16), (1, 2), (2, 3)]
    with pytest.warns(UserWarning, match="9 of 17 images were skipped"):  # captions and draw.py
        exec(BLOCKS[2], names)
    assert {path.suffix for path in names["paths"]} == {".png", ".jpg"}
    assert names["rows"].shape == (8, 16)
    # A hundred steps would take a minute.
    exec(BLOCKS[3].replace("duration=100 steps", "duration=2 steps"), names)
    assert names["run"].step == 2
    assert repr(names["model"]).startswith("Encoder(runs/first at step 2, ")
    assert len(BLOCKS) == 4
