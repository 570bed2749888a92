"""The examples run, and the pictures that they use are whole."""

from __future__ import annotations

import json
import runpy
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ranks import ROOT

PICTURES = ROOT / "examples/pictures"
FILES = sorted(file for file in PICTURES.iterdir() if file.suffix in (".png", ".jpg"))


def code_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_runs_and_its_loss_and_gradient_by_hand_are_those_of_clipx(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It compares them itself; here, that these are the numbers of a real batch."""
    monkeypatch.chdir(ROOT / "examples")
    names: dict[str, Any] = {}
    for cell in code_cells(ROOT / "examples/one_pair.ipynb"):
        exec(cell, names)
    assert names["captions"][0] == "a gray cat"
    assert names["logits"].shape == (8, 8)
    # Random towers know nothing: about the logarithm of the number of candidates, ln 8 = 2.08.
    assert 1.5 < names["loss"].item() < 3.5
    assert names["model"].visual.proj.grad.abs().sum() > 0


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = json.loads((ROOT / "examples/one_pair.ipynb").read_text(encoding="utf-8"))["cells"]
    assert [cell["outputs"] for cell in cells if cell.get("outputs")] == []


def test_the_pictures_are_small_and_have_captions() -> None:
    assert len(FILES) == 8
    assert all(file.with_suffix(".txt").read_text() for file in FILES)
    folder = [file for file in (ROOT / "examples").rglob("*") if file.suffix != ".py"]
    size = sum(file.stat().st_size for file in folder if file.is_file())
    assert size < 100_000


def test_the_shard_has_the_pictures_and_captions_of_the_folder() -> None:
    expected = {}
    for file in FILES:
        for member in (file, file.with_suffix(".txt")):
            expected[member.name] = member.read_bytes()
    with tarfile.open(ROOT / "examples/pairs.tar") as tar:
        packed = {name: tar.extractfile(name).read() for name in tar.getnames()}
    assert packed == expected


def test_the_script_draws_these_pictures() -> None:
    """Nearly: another Pillow may smooth and compress in another way."""
    script = runpy.run_path(str(PICTURES / "draw.py"))
    assert set(script["PICTURES"]) == {file.name for file in FILES}
    for file in FILES:
        _, background, draw = script["PICTURES"][file.name]
        pen = script["Pen"](background)
        draw(pen)
        drawn = np.asarray(pen.finished(), dtype=float)
        stored = np.asarray(Image.open(file).convert("RGB"), dtype=float)
        assert np.abs(drawn - stored).mean() < 4
