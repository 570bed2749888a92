"""Which checkpoint folders are whole. A manifest, written last, has the size and SHA-256 of every
other file; no file of a folder is trusted before it was compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipx.types import UserError


def seal(folder: Path, known: Mapping[str, dict[str, Any]]) -> None:
    """Write the manifest of all that is in a folder, which is on the disk then. Raises OSError.

    known: what the manifest says of some files, by path in the folder: they need not be read again
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {}
    for file in files:
        name = str(file.relative_to(folder))
        found = known.get(name)
        manifest[name] = found or {"bytes": file.stat().st_size, "sha256": sha256(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    folders = (path for path in folder.rglob("*") if path.is_dir())
    for path in [*files, folder / "manifest.json", *folders, folder]:
        sync(path)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest.items():
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if sha256(path / name) != expected["sha256"]:
                return f"{name} has another SHA-256 than when it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are all as its manifest says, and why newer ones were
    passed over."""
    complaints = []
    for path in reversed(list_checkpoints(folder)):
        fault = verify(path)
        if fault is None:
            return path, complaints
        complaints.append(f"checkpoint {path} is skipped: {fault}")
    return None, complaints


def find_checkpoint(path: Path) -> Path:
    """Itself, or the newest valid one of a run folder. Raises UserError."""
    if (path / "model.safetensors").exists():
        fault = verify(path)
        if fault:
            raise UserError(f"checkpoint {path} is damaged: {fault}")
        return path
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give a run folder, or one of its checkpoints/step_*")
    newest, complaints = newest_valid(path / "checkpoints")
    if newest is None:
        raise UserError("\n".join([f"{path} holds no usable checkpoint", *complaints]))
    return newest
