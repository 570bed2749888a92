"""Test sets in CLIP_benchmark's webdataset layout.

<set>/classnames.txt, zeroshot_classification_templates.txt, test/nshards.txt, test/0.tar ...
members: key.png + key.cls (index of the class), or key.png + key.txt (captions, one a line)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from clipx.data import decode
from clipx.data.sources.webdataset import open_shard
from clipx.types import UserError

Item = TypeVar("Item")


def is_classification(path: Path) -> bool:
    """True for a folder of images with classes, False for one of images with captions. Raises
    UserError."""
    if not path.is_dir():
        raise UserError(f"test set {path} does not exist; the demo's are made by `clipx data demo`")
    return (path / "classnames.txt").exists()


def lines(path: Path) -> list[str]:
    """The non-empty lines of a text file. Raises UserError."""
    try:
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"test set file {path} cannot be read: {error.strerror}") from error
    if not found:
        raise UserError(f"test set file {path} is empty")
    return found


def read_set(path: Path, label: str, split: str = "test") -> Iterator[tuple[Tensor, str]]:
    """((3, H, W) uint8, text of the `.<label>` member) of every sample. Raises UserError at the
    first that lacks either."""
    shards = sorted((path / split).glob("*.tar"), key=lambda p: (len(p.stem), p.stem))
    if not shards:
        raise UserError(f"test set {path} has no shards {split}/*.tar")
    for path in shards:
        shard = open_shard(path)
        for sample, key in enumerate(shard.index.keys):
            members = {name: (offset, size) for name, offset, size in shard.index.members(sample)}
            image = next((members[name] for name in decode.EXTENSIONS if name in members), None)
            if image is None or label not in members:
                raise UserError(
                    f"test set sample {key} of {path} has no image or no .{label} member"
                )
            try:
                text = shard.pread(*members[label]).decode("utf-8")
                yield decode.decode(shard.pread(*image)), text
            except (decode.BadImage, UnicodeDecodeError) as error:
                raise UserError(
                    f"test set sample {key} of {path} does not decode: {error}"
                ) from error


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
