"""Which checkpoint folders are complete. The manifest, written last, lists the size and SHA-256 of
every other file, and a folder is used only after all its files were compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipx.files import digest_file, sync
from clipx.types import UserError

REQUIRED = ("model.safetensors", "open_clip_config.json", "training.pt", "state.json")
OPTIONAL = (  # files that loading reads if they are present
    "ema.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
)
_NAME = re.compile(r"step_([0-9]+)")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Exceptions for a JSON file that is missing, damaged or of another structure."""


def seal(folder: Path, entries: Mapping[str, dict[str, Any]]) -> None:
    """Write the manifest of a folder, and wait until all of it is on the disk. Raises OSError.

    entries: of files that need not be read again, by path in the folder
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {}
    for file in files:
        name = str(file.relative_to(folder))
        manifest[name] = entries.get(name) or {
            "bytes": file.stat().st_size,
            "sha256": digest_file(file),
        }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for path in [*folder.rglob("*"), folder]:  # files, and the folders that list them
        sync(path)


def verify(path: Path) -> str | None:
    """The first fault of a checkpoint; None if it is complete."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if missing := [name for name in REQUIRED if name not in manifest]:
            return f"its manifest does not list {', '.join(missing)}"
        # Loading would read these too, and they are not of the run that wrote the manifest.
        present = [name for name in OPTIONAL if (path / name).exists()]
        present += [f"optimizer/{file.name}" for file in path.glob("optimizer/*.safetensors")]
        for name in sorted(present):
            if name not in manifest:
                return f"{name} is not listed in its manifest; remove it"
        for name, expected in manifest.items():
            if fault := _difference(path, name, expected):
                return fault
    except _UNREADABLE as error:
        return f"{type(error).__name__}: {error}"
    return None


def _difference(path: Path, name: str, expected: dict[str, Any]) -> str | None:
    """How a file differs from its entry in the manifest. Raises OSError, KeyError, TypeError."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"its manifest lists {name!r}, which is outside of the checkpoint"
    file = path / name
    size = file.stat().st_size
    if size != expected["bytes"]:
        return f"{name} has {size} bytes instead of {expected['bytes']}"
    if not file.is_file():  # reading a device or a pipe would not end
        return f"{name} is not a regular file"
    if digest_file(file) != expected["sha256"]:
        return f"{name} has another SHA-256 than when it was written"
    return None


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint folder; None for any other name, such as a person's
    `step_best` or `step_00000004.bak`."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def list_checkpoints(folder: Path) -> list[Path]:
    """The folders named step_<digits>, in the order of their steps."""
    checkpoints: list[tuple[int, Path]] = []
    if folder.is_dir():
        for path in folder.iterdir():
            step = step_of(path)
            if step is not None and path.is_dir():
                checkpoints.append((step, path))
    return [path for _, path in sorted(checkpoints)]


def valid_checkpoints(folder: Path, complaints: list[str]) -> Iterator[Path]:
    """Complete checkpoints, newest first. Appends to `complaints` why others are skipped."""
    for path in reversed(list_checkpoints(folder)):
        fault = verify(path) or _other_step(path)
        if fault is None:
            yield path
        else:
            complaints.append(f"checkpoint {path} is skipped: {fault}")


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """(the newest complete checkpoint, why newer ones are skipped)"""
    complaints: list[str] = []
    return next(valid_checkpoints(folder, complaints), None), complaints


def _other_step(path: Path) -> str | None:
    """The fault of a copy under the name of another step: a run would resume from it again and
    again until it had passed that step."""
    try:
        step = json.loads((path / "state.json").read_text())["step"]
    except _UNREADABLE as error:
        return f"state.json: {type(error).__name__}: {error}"
    return None if step == step_of(path) else f"its state.json is of step {step}"


def prune(folder: Path, step: int, *, keep: int, keep_every: int | None) -> None:
    """Remove checkpoints of the run that need not be kept once that of `step` exists. Raises
    OSError.

    The newest `keep` up to `step` stay, and multiples of `keep_every`. Later ones stay too: they
    were skipped at the start because they are damaged, and must not take the place of good ones
    here. What the run has not written is never removed."""
    past = []
    for path in list_checkpoints(folder):
        if is_own(path) and _number(path) <= step:
            past.append(path)
    faults: list[OSError] = []
    for path in past[:-keep]:
        if keep_every is not None and _number(path) % keep_every == 0:
            continue
        try:
            remove(path)
        except OSError as error:
            faults.append(error)  # remove the others, or the disk fills
    if faults:
        raise faults[0]


def _number(path: Path) -> int:
    """The step of a folder that `list_checkpoints` returned."""
    step = step_of(path)
    assert step is not None
    return step


def is_own(path: Path) -> bool:
    """Whether a run wrote this checkpoint, which may be damaged since. Links and copies under other
    names belong to a person."""
    if path.name != f"step_{_number(path):08d}" or path.is_symlink():
        return False
    try:
        return json.loads((path / "state.json").read_text())["step"] == step_of(path)
    except _UNREADABLE:
        # Damaged, or half removed: only a run writes a manifest.
        return (path / "manifest.json").is_file()


def remove(path: Path) -> None:
    """Remove the files of a checkpoint, and its folder if nothing else is in it. Raises OSError."""
    try:
        listed = list(json.loads((path / "manifest.json").read_text()))
    except _UNREADABLE:
        listed = []
    names = {*REQUIRED, *OPTIONAL, "config.yaml", "version.json"}
    names |= {f"optimizer/{file.name}" for file in path.glob("optimizer/rank_*")}
    for name in listed:
        # A damaged manifest must not remove files elsewhere.
        if isinstance(name, str) and ".." not in Path(name).parts:
            names.add(name)
    for name in sorted(names - {"manifest.json"}):
        if not Path(name).is_absolute():
            (path / name).unlink(missing_ok=True)
    # Last, because a removal that was interrupted is recognized by it and completed later.
    (path / "manifest.json").unlink(missing_ok=True)
    for folder in (path / "optimizer", path):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`, or the newest complete one of a run folder. Raises UserError."""
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
