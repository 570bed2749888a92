"""The parts of embeddings, and the names of their files."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clipx.data.corpus import Corpus
from clipx.types import UserError


@dataclass(frozen=True)
class Part:
    """Samples first ... stop - 1 of a shard."""

    number: int
    shard: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first


class Embeddings:
    """The files of a folder."""

    def __init__(self, folder: Path, num_parts: int, *, has_texts: bool = False) -> None:
        self.folder = folder
        self._has_texts = has_texts
        self._digits = len(str(max(0, num_parts - 1)))

    def image_file(self, part: int) -> Path:
        return self._file("img_emb", part, "npy")

    def text_file(self, part: int) -> Path:
        return self._file("text_emb", part, "npy")

    def metadata_file(self, part: int) -> Path:
        return self._file("metadata", part, "parquet")

    def quarantine_file(self, part: int) -> Path:
        return self._file("quarantine", part, "jsonl")

    def rename_parts(self) -> None:
        """Give the files of a corpus that has grown as many digits as the others. Raises OSError.

        It may be stopped at any file, and other processes may do the same.
        """
        for file_of in (self.image_file, self.text_file, self.metadata_file, self.quarantine_file):
            wanted = file_of(0)
            for path in wanted.parent.glob(f"{wanted.parent.name}_*{wanted.suffix}"):
                target = file_of(int(path.stem.rpartition("_")[2]))
                if path != target:
                    with suppress(FileNotFoundError):
                        path.rename(target)

    def is_done(self, part: int) -> bool:
        files = [self.metadata_file(part), self.image_file(part)]
        if self._has_texts:
            files.append(self.text_file(part))
        return all(path.exists() for path in files)

    def _file(self, name: str, part: int, extension: str) -> Path:
        # With zeros, so that the order of names is that of numbers, as readers assume.
        return self.folder / name / f"{name}_{part:0{self._digits}d}.{extension}"


def parts_of(corpus: Corpus, part_size: int) -> list[Part]:
    """All samples of the corpus, in its order."""
    parts = []
    for shard, size in enumerate(corpus.sizes.tolist()):
        for first in range(0, size, part_size):
            parts.append(Part(len(parts), shard, first, min(size, first + part_size)))
    return parts


def share_of_task(task: str | None, rank: int = 0, world_size: int = 1) -> dict[str, int]:
    """Which parts are this process's: of rank and world size, or of the task. Raises UserError."""
    if task is None:
        return {"rank": rank, "world_size": world_size}
    match = re.fullmatch(r"(\d+)/(\d+)", task)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--task {task} is not I/N with I from 1 to N, such as 3/16")
    if world_size > 1:
        raise UserError(f"--task {task} is for single processes; torchrun shares parts by itself")
    return {"rank": number - 1, "world_size": count}
