"""The examples run, and the pictures that they use are whole."""

from __future__ import annotations

import json
import re
import runpy
import tarfile
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ranks import ROOT

PICTURES = ROOT / "examples/pictures"
FILES = sorted(file for file in PICTURES.iterdir() if file.suffix in (".png", ".jpg"))


def printed(notebook: dict[str, Any]) -> str:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", [])) for output in outputs)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def test_the_notebook_runs_and_prints_what_is_stored_in_it() -> None:
    """It compares loss and gradient by hand with those of clipx itself. If the outputs have
    changed: python docs/reference/notebook.py"""
    path = ROOT / "examples/one_pair.ipynb"
    stored = json.loads(path.read_text(encoding="utf-8"))
    again = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    runpy.run_path(str(ROOT / "docs/reference/notebook.py"))["run"](again, names)
    assert names["captions"][0] == "a gray cat"
    # Random towers know nothing: about the logarithm of the number of candidates, ln 8 = 2.08.
    assert 1.5 < names["loss"].item() < 3.5
    assert names["model"].visual.proj.grad.abs().sum() > 0
    # Other processors round in another way.
    assert numbers(printed(again)) == pytest.approx(numbers(printed(stored)), abs=0.02)
    assert len(numbers(printed(stored))) > 80


def test_the_outputs_of_the_notebook_are_small_and_have_the_picture() -> None:
    content = (ROOT / "examples/one_pair.ipynb").read_text(encoding="utf-8")
    assert len(content) < 30_000
    assert content.count('"image/png"') == 1


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
