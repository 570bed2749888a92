"""launch/quickstart.sh with stand-ins for Python, pip and clipx: what each step shows."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ranks import ROOT

PYTHON = """#!/bin/sh
case "$*" in
  *"import torch"*) exit 1 ;;
  "-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$(dirname "$0")/pip" "$(dirname "$0")/clipx" "$3/bin" ;;
esac
"""
PIP = """#!/bin/sh
case "$*" in *--quiet*) exit 0 ;; esac
echo "Collecting $*"
"""
CLIPX = """#!/bin/sh
echo "clipx $*" >&2
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of which only the launchers are real."""
    shutil.copytree(ROOT / "launch", tmp_path / "clone/launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "clone")
    (tmp_path / "bin").mkdir()
    for name, text in (("python3", PYTHON), ("pip", PIP), ("clipx", CLIPX), ("npm", "#!/bin/sh\n")):
        script = tmp_path / "bin" / name
        script.write_text(text)
        script.chmod(0o755)
    return tmp_path / "clone"


def quickstart(clone: Path, *options: str) -> subprocess.CompletedProcess[str]:
    path = f"{clone.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(clone / "launch/quickstart.sh"), *options],
        capture_output=True,
        text=True,
        env={"PATH": path, "HOME": str(clone)},
        check=True,
    )


def test_each_step_is_announced_and_pip_shows_its_downloads(clone: Path) -> None:
    done = quickstart(clone, "run_dir=runs/a")
    lines = [line for line in done.stderr.splitlines() if line]
    assert lines[:2] == [
        "== 1 of 5: software",
        "installing clipx and its libraries into .venv, once; torch is a large download",
    ]
    assert lines[2].startswith("Collecting install")
    assert " torch==" in lines[2]
    assert lines[3].endswith("--editable .[demo,track,fast,search,serve]")
    assert lines[4:] == [
        "== 2 of 5: corpus",
        "clipx data demo --preset quick --out data/demo",
        "== 3 of 5: training, about 10 minutes on 2 cores",
        "clipx train configs/run/demo_tiny.yaml run_dir=runs/a",
        "== 4 of 5: evaluation",
        "clipx eval runs/a --picture runs/a/predictions.png",
        "== 5 of 5: embeddings for search",
        "clipx embed runs/a data/demo/train --out runs/a/embeddings",
    ]
    # Results and the next command are all of stdout.
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "sample images with the model's guesses",
        "a page that searches all drawings by words and pictures",
    ]


def test_a_second_start_installs_nothing(clone: Path) -> None:
    quickstart(clone)
    assert "Collecting" not in quickstart(clone).stderr
