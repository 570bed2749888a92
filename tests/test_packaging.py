"""The distribution: its name in messages, its extras, and a wheel outside the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

import clipx

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALL = re.compile(r"['`](clipx[\w-]*)\[([a-z0-9]+(?:,[a-z0-9]+)*)\]")

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
    assert PROJECT["optional-dependencies"].keys() - asked - {"dev"} == set()


def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet"]
    options = ["--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("clipx_train-")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert not [name for name in names if not name.startswith(("clipx/", "clipx_train-"))]
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", OUTSIDE, str(tmp_path / "site")],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "YAML file" in done.stdout


def test_the_citation_has_the_version_and_the_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == clipx.__version__
    assert citation["license"] == PROJECT["license"]
