"""The package as a whole: its public names, its documentation, what a wheel holds."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks import ROOT

import clipx

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALL = re.compile(r"['`](clipx[\w-]*)\[([a-z0-9]+(?:,[a-z0-9]+)*)\]")
CODE = """
import sys, clipx
names = dir(clipx)
clipx.__version__
print(sorted(names) == sorted(clipx.__all__), "torch" in sys.modules, "numpy" in sys.modules)
"""

OUTSIDE = """
import importlib.resources, sys
sys.path.insert(0, sys.argv[1])
import clipx, clipx.serve.app, clipx.report.write
assert clipx.__file__.startswith(sys.argv[1]), clipx.__file__
for package, name in (
    ("clipx", "py.typed"),
    ("clipx.report", "page.html.j2"),
    ("clipx.report", "style.css"),
    ("clipx.serve", "page/index.html"),
):
    assert importlib.resources.files(package).joinpath(name).is_file(), name
from clipx.cli import main
main(["train", "--help"])
"""


def test_dir_shows_the_public_names_and_imports_none_of_them() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "False", "False"], done.stderr
    assert {"load", "train", "zero_shot", "Encoder", "Index", "__version__"} <= set(dir(clipx))


def test_the_version_is_a_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", clipx.__version__)


def public_objects() -> Iterator[tuple[str, Any]]:
    """(name, function or class) of all that users call, methods and properties included."""
    for name in clipx.__all__:
        found = getattr(clipx, name)
        if isinstance(found, str):
            continue
        yield name, found
        if not inspect.isclass(found):
            continue
        for member, value in vars(found).items():
            if member.startswith("_"):
                continue
            value = value.fget if isinstance(value, property) else value
            value = value.__func__ if isinstance(value, classmethod) else value
            if inspect.isfunction(value):
                yield f"{name}.{member}", value


PUBLIC = dict(public_objects())


def test_the_public_objects_were_found() -> None:
    assert {"load", "Encoder.encode_image", "Index.open", "FinishedRun.load"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_objects_are_documented_with_their_arguments(name: str) -> None:
    found = PUBLIC[name]
    text = found.__doc__ or ""
    assert len(text) > 10
    if not inspect.isfunction(found):
        return
    words = set(re.findall(r"\w+", text))
    missing = [x for x in inspect.signature(found).parameters if x not in words | {"self", "cls"}]
    assert missing == [], "every argument is named in the docstring"


RAISING = ["load", "train", "zero_shot", "Encoder.encode_image", "Encoder.encode_text"]
RAISING += ["Encoder.similarity", "Encoder.scale", "Index.open", "Index.search", "FinishedRun.load"]


@pytest.mark.parametrize("name", RAISING)
def test_errors_are_documented(name: str) -> None:
    assert "Raises" in (PUBLIC[name].__doc__ or "")


SHAPED = {
    "Encoder.encode_image": "(N, D) float32 of unit norm",
    "Encoder.encode_text": "(N, D) float32 of unit norm",
    "Encoder.similarity": "(N, M) float32 cosines",
    "Encoder.fit": "(3, H, W) uint8",
    "zero_shot": "(N, C) float32 probabilities",
    "Index.nearest": "vector: (D,)",
    "Index.search": "vector: (D,)",
    "Index.rows": "(N, D)",
}


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_are_documented(name: str) -> None:
    assert SHAPED[name] in (PUBLIC[name].__doc__ or "")


def test_a_wheel_has_types_pages_and_version_and_works_elsewhere(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "clipx", source / "clipx", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"clipx_train-{clipx.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert not [name for name in files if not name.startswith(("clipx/", "clipx_train-"))]
    assert {"clipx/py.typed", "clipx/report/page.html.j2", "clipx/serve/page/app.js"} <= files
    modules = {str(path.relative_to(source)) for path in (source / "clipx").rglob("*.py")}
    assert modules <= files
    command = [sys.executable, "-I", "-c", OUTSIDE, str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "YAML file" in done.stdout


def texts() -> dict[Path, str]:
    found = {}
    for folder in ("clipx", "docs", "benchmarks", "launch"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".sh", ".j2"):
                found[path] = path.read_text()
    found[ROOT / "README.md"] = (ROOT / "README.md").read_text()
    return found


def test_messages_and_docs_name_this_distribution_and_its_extras() -> None:
    """`pip install clipx` would install a package of others."""
    named = []
    for path, text in texts().items():
        for name, extras in INSTALL.findall(text):
            assert name == PROJECT["name"], f"{path} installs {name}"
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), path
            named.append(path)
        assert not re.search(r"pip install '?clipx\b(?!-train)", text), path
    assert len(named) > 10


def test_each_extra_has_code_that_asks_for_it() -> None:
    """But for those of developers."""
    asked: set[str] = set()
    for text in texts().values():
        for _, extras in INSTALL.findall(text):
            asked |= set(extras.split(","))
    asked |= set(re.findall(r"\.\[([a-z,]+)\]", (ROOT / "README.md").read_text())[0].split(","))
    assert PROJECT["optional-dependencies"].keys() - asked - {"dev", "docs"} == set()


def test_the_citation_has_the_version_and_the_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == clipx.__version__
    assert citation["license"] == PROJECT["license"]
