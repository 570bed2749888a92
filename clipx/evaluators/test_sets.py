"""Test sets on disk: images with keys, and a text or a class for each.

CLIP_benchmark's webdataset layout:
<set>/classnames.txt, zeroshot_classification_templates.txt, <split>/0.tar, 1.tar ...
members: key.png + key.cls (index of the class), or key.png + key.txt (captions, one a line)

Folders of classes, as torchvision's ImageFolder has them:
<set>/<split>/<class>/image.jpg, or <set>/<class>/image.jpg; classnames.txt may name the classes
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipx.data import decode, image_formats
from clipx.data.sample_files import read_image_file
from clipx.data.sources.webdataset import OpenShard, open_shard
from clipx.types import UserError


class UndecodableImage(UserError):
    """An image of a test set cannot be decoded; the message names it."""


@dataclass(frozen=True)
class Images:
    """path: of the set, or what to call it in messages; keys: of the images, unique in the set;
    read: number of an image -> its bytes; clusters: (N,) as in Result"""

    path: Path | str
    keys: Sequence[str]
    read: Callable[[int], bytes]
    clusters: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, number: int) -> Tensor:
        """(3, H, W) uint8. Raises UndecodableImage, or UserError if it cannot be read."""
        sample = f"test set sample {self.keys[number]} of {self.path} does not decode"
        try:
            return decode.decode(self.read(number))
        except decode.BadImage as error:
            raise UndecodableImage(f"{sample}: {with_remedy(error)}") from error
        except OSError as error:  # of the disk: the image itself may be fine
            raise UserError(f"{sample}: {error}") from error

    def shown(self, number: int) -> Tensor:
        """The image for a page, a gray one if it does not decode."""
        try:
            return self.image(number)
        except UndecodableImage:
            return gray(64)

    def subset(self, numbers: Sequence[int]) -> Images:
        keys = [self.keys[number] for number in numbers]
        clusters = None if self.clusters is None else self.clusters[list(numbers)]
        return Images(self.path, keys, lambda row: self.read(numbers[row]), clusters)


def with_remedy(error: Exception) -> str:
    """The message of an image that does not decode."""
    if isinstance(error, decode.TooLarge):  # its bound is a setting of training alone
        return f"{error}; make it smaller: for evaluation the bound is fixed"
    return str(error)


def gray(size: int) -> Tensor:
    """(3, size, size) uint8"""
    return torch.full((3, size, size), 127, dtype=torch.uint8)


def evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `limit` of 0 ... count - 1, from the first on."""
    limit = min(limit, count)
    return [number * count // limit for number in range(limit)]


def is_classification(path: Path) -> bool:
    """Whether a set has classes; otherwise it has captions. Raises UserError."""
    folder = split_folder(path, None)
    return (path / "classnames.txt").exists() or not any(folder.glob("*.tar"))


def split_folder(path: Path, split: str | None) -> Path:
    """The folder of a split; without a name `test` or `val`, or the set's own folder. Raises
    UserError."""
    if not path.is_dir():
        raise UserError(f"test set {path} does not exist; the demo's are made by `clipx data demo`")
    if split is None:
        for name in ("test", "val"):
            if (path / name).is_dir():
                return path / name
        return path
    if not (path / split).is_dir():
        folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        names = ", ".join(folders[:5]) or "no folders"
        if len(folders) > 5:
            names += " ..."
        raise UserError(
            f"test set {path} has no split {split!r}; it has {names}. Give the folder above, "
            "another split, or split=null where these are the classes"
        )
    return path / split


def text_lines(text: str) -> list[str]:
    """The lines of a text that are not blank."""
    return [line for line in text.splitlines() if line.strip()]


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"test set file {path} cannot be read: {reason}") from error
    lines = text_lines(text)
    if not lines:
        raise UserError(f"test set file {path} is empty")
    return lines


def read_shards(folder: Path, label: str) -> tuple[Images, list[str]]:
    """The images of a split's shards, and the text of each one's `.<label>` member. Raises
    UserError at the first sample without an image or the member."""
    # By length first, so that 10.tar follows 9.tar.
    paths = sorted(folder.glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise UserError(f"test set {folder} has no shards *.tar; is it the folder of the set?")
    keys: list[str] = []
    texts: list[str] = []
    places: list[tuple[OpenShard, int, int]] = []  # shard, offset, size
    for path in paths:
        shard = open_shard(path)
        for sample, key in enumerate(shard.index.keys):
            # Members of other names are ignored, such as a JSON beside the image.
            members = {name: (offset, size) for name, offset, size in shard.index.members(sample)}
            kinds = [name for name in image_formats.EXTENSIONS if name in members]
            if not kinds or label not in members:
                raise UserError(
                    f"test set sample {key} of {path} has no image or no .{label} member"
                )
            try:
                texts.append(shard.pread(*members[label]).decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"test set sample {key} of {path} does not decode: {error}"
                ) from error
            # Keys are unique within a shard only.
            keys.append(f"{path.name}/{key}")
            places.append((shard, *members[kinds[0]]))
    if not keys:
        raise UserError(f"test set {folder} has no samples: its shards are empty")

    def read(number: int) -> bytes:
        shard, offset, size = places[number]
        return shard.pread(offset, size)

    return Images(folder, keys, read), texts


def read_class_folders(folder: Path, classes: Sequence[str]) -> tuple[Images, list[int]]:
    """The images of a split, class by class, and the number of each one's class. Raises UserError.

    classes: names of their folders
    """
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        # Sorted, since file systems list in any order, and results must not depend on that.
        for path in sorted((folder / name).rglob("*")):
            if _is_image(path):
                files.append(path)
                labels.append(label)
            elif _is_heic_alone(path):
                raise UserError(f"test set image {path}: {image_formats.HEIC_REMEDY}, or remove it")
    if not files:
        raise UserError(
            f"test set {folder} has no images in its {len(classes)} class folders; "
            f"looked for {', '.join(image_formats.EXTENSIONS)}"
        )
    keys = [file.relative_to(folder).as_posix() for file in files]
    images = Images(folder, keys, lambda row: read_image_file(files[row], decode.MAX_BYTES))
    return images, labels


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in it, sorted, numbers by their value. Raises UserError."""
    numbers = []
    others = []
    for path in folder.iterdir():
        if path.is_dir() and path.name[0] != ".":
            is_number = path.name.isascii() and path.name.isdecimal()
            (numbers if is_number else others).append(path.name)
    if numbers or others:
        return sorted(numbers, key=lambda name: (int(name), name)) + sorted(others)
    if any(_is_image(path) for path in folder.iterdir()):
        raise UserError(
            f"test set {folder} has images but no class folders: move each image into a folder "
            "named by its class, as torchvision's ImageFolder wants it (for the validation images "
            "of ImageNet, which come in one folder, valprep.sh does that)"
        )
    raise UserError(f"test set {folder} has neither shards *.tar nor class folders with images")


def _is_image(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in image_formats.EXTENSIONS


def _is_heic_alone(path: Path) -> bool:
    """Whether it is a HEIC file without a converted image beside it. Left out silently, it would
    make the set another one."""
    if path.suffix.lower().removeprefix(".") not in image_formats.HEIC_EXTENSIONS:
        return False
    return not any(_is_image(other) for other in path.parent.glob(f"{glob.escape(path.stem)}.*"))
