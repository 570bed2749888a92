"""Test sets on disk, in one of two layouts.

CLIP_benchmark's webdataset layout:
<set>/classnames.txt, zeroshot_classification_templates.txt, <split>/0.tar, 1.tar ...
members: key.png + key.cls (index of the class), or key.png + key.txt (captions, one a line)

Folders of classes, as torchvision's ImageFolder has them:
<set>/<split>/<class>/image.jpg, or <set>/<class>/image.jpg; classnames.txt may name the classes
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from clipx.data import decode
from clipx.data.sample_files import read_image_file
from clipx.data.sources.webdataset import OpenShard, open_shard
from clipx.evaluators._undecodable import UndecodableImage, gray
from clipx.types import UserError

MAX_PIXELS = 178_956_970
"""Of an image, as Pillow's own bound has it, so that a set is read as everybody reads it."""


@dataclass(frozen=True)
class Images:
    """keys: one an image, unique in the set; read: of the image of a number, its bytes"""

    path: Path
    keys: Sequence[str]
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, number: int) -> Tensor:
        """(3, H, W) uint8. Raises UndecodableImage, and UserError where it cannot be read."""
        sample = f"test set sample {self.keys[number]} of {self.path} does not decode"
        try:
            return decode.decode(self.read(number), max_pixels=MAX_PIXELS)
        except decode.BadImage as error:
            raise UndecodableImage(f"{sample}: {error}") from error
        except OSError as error:  # of the disk, and maybe not the next time: no fault of the image
            raise UserError(f"{sample}: {error}") from error

    def shown(self, number: int) -> Tensor:
        """The same for a person to look at, gray where it cannot be decoded."""
        try:
            return self.image(number)
        except UndecodableImage:
            return gray(64)


def is_classification(path: Path) -> bool:
    """True for a folder of images with classes, False for one of images with captions. Raises
    UserError."""
    folder = split_folder(path, None)
    return (path / "classnames.txt").exists() or not any(folder.glob("*.tar"))


def split_folder(path: Path, split: str | None) -> Path:
    """Where a split lies: the one that is named, else `test` or `val`, else the set's own folder.
    Raises UserError."""
    if not path.is_dir():
        raise UserError(f"test set {path} does not exist; the demo's are made by `clipx data demo`")
    if split is None:
        return next((path / s for s in ("test", "val") if (path / s).is_dir()), path)
    if not (path / split).is_dir():
        there = [p.name for p in sorted(path.iterdir()) if p.is_dir()] or ["no folders"]
        shown = ", ".join(there[:5]) + (" ..." if len(there) > 5 else "")
        raise UserError(
            f"test set {path} has no split {split!r}; it has {shown}. Give the folder above, "
            "another split, or split=null where these are the classes"
        )
    return path / split


def lines(path: Path) -> list[str]:
    """The non-empty lines of a text file. Raises UserError."""
    try:
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"test set file {path} cannot be read: {why}") from error
    if not found:
        raise UserError(f"test set file {path} is empty")
    return found


def read_shards(folder: Path, label: str) -> tuple[Images, list[str]]:
    """The samples of a split's shards and the text of each one's `.<label>` member. Raises
    UserError at the first sample that lacks an image or the member."""
    paths = sorted(folder.glob("*.tar"), key=lambda p: (len(p.stem), p.stem))
    if not paths:
        raise UserError(f"test set {folder} has no shards *.tar; is it the folder of the set?")
    keys: list[str] = []
    places: list[tuple[OpenShard, int, int]] = []
    texts: list[str] = []
    for path in paths:
        shard = open_shard(path)
        for sample, key in enumerate(shard.index.keys):
            members = {name: (offset, size) for name, offset, size in shard.index.members(sample)}
            image = next((members[name] for name in decode.EXTENSIONS if name in members), None)
            if image is None or label not in members:
                raise UserError(
                    f"test set sample {key} of {path} has no image or no .{label} member"
                )
            try:
                texts.append(shard.pread(*members[label]).decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"test set sample {key} of {path} does not decode: {error}"
                ) from error
            keys.append(f"{path.name}/{key}")
            places.append((shard, *image))
    if not keys:
        raise UserError(f"test set {folder} has no samples: its shards are empty")

    def read(number: int) -> bytes:
        shard, offset, size = places[number]
        return shard.pread(offset, size)

    return Images(folder, keys, read), texts


def read_class_folders(folder: Path, classes: Sequence[str]) -> tuple[Images, list[int]]:
    """The images of a split, class by class, and the place of each one's folder in `classes`.
    Raises UserError."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if _is_image(p))
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(
            f"test set {folder} has no images in its {len(classes)} class folders; "
            f"looked for {', '.join(decode.EXTENSIONS)}"
        )
    keys = [file.relative_to(folder).as_posix() for file in files]

    def read(number: int) -> bytes:
        return read_image_file(files[number], decode.MAX_BYTES)

    return Images(folder, keys, read), labels


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in it, numbers in the order of numbers. Raises UserError."""
    names = [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if names:
        return sorted(
            names, key=lambda n: (0, int(n), n) if re.fullmatch("[0-9]+", n) else (1, 0, n)
        )
    if any(map(_is_image, folder.iterdir())):
        raise UserError(
            f"test set {folder} has images but no class folders: move each image into a folder "
            "named by its class, as torchvision's ImageFolder wants it (for the validation images "
            "of ImageNet, which come in one folder, valprep.sh does that)"
        )
    raise UserError(f"test set {folder} has neither shards *.tar nor class folders with images")


def _is_image(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in decode.EXTENSIONS
