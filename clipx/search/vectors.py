"""The vectors of embeddings: whole in memory, or memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from clipx.search.embeddings import MANIFEST, Manifest, Modality
from clipx.search.parts import Embeddings
from clipx.types import UserError


class MappedVectors:
    """(N, D) rows of several files, end to end. They are read from the disk where they are used.

    parts: (n, D) memory-mapped rows of each file
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def width(self) -> int:
        return self.parts[0].shape[1]

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """(n, D) of the rows with these numbers, (n,) int64, which increase."""
        part_of = np.searchsorted(self._ends, numbers, side="right")
        found = [np.empty((0, self.width), self.parts[0].dtype)]
        for part in np.unique(part_of).tolist():
            first = self._ends[part] - len(self.parts[part])
            found.append(self.parts[part][numbers[part_of == part] - first])
        return np.concatenate(found)


def read_vectors(folder: Path, manifest: Manifest, modality: Modality) -> np.ndarray:
    """(N, D) of all parts. Raises UserError as `map_vectors`."""
    return np.concatenate(map_vectors(folder, manifest, modality).parts)


def map_vectors(folder: Path, manifest: Manifest, modality: Modality) -> MappedVectors:
    """The vectors of all parts. Raises UserError for a file that is damaged, has another width, or
    has rows that are not of unit norm."""
    if modality == "text" and not manifest.has_texts:
        raise UserError(f"{folder} has no embeddings of texts: its corpus has no captions")
    files = Embeddings(folder, manifest.num_parts)
    file_of = files.image_file if modality == "image" else files.text_file
    vectors = map_files([file_of(part) for part in range(manifest.num_parts)])
    if vectors.width != manifest.embed_dim:
        raise UserError(
            f"{folder} has embeddings of {vectors.width} dimensions, and its {MANIFEST} says "
            f"{manifest.embed_dim}: files of another model; embed the corpus again into a new "
            "folder"
        )
    return vectors


def map_files(files: Sequence[Path]) -> MappedVectors:
    """Raises UserError as `map_vectors`."""
    parts: list[np.ndarray] = []
    for path in files:
        try:
            rows = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read: {error}; delete it and embed again") from error
        if rows.ndim != 2 or (parts and rows.shape[1] != parts[0].shape[1]):
            raise UserError(f"{path} has shape {rows.shape}, unlike the files before it")
        if not _may_be_unit(rows):
            raise UserError(
                f"{path} has numbers that are not finite or above 1, which rows of unit norm have "
                "not; delete it and embed again"
            )
        parts.append(rows)
    if not parts:
        raise UserError("the embeddings have no files: the corpus has no samples; embed another")
    return MappedVectors(parts)


def _may_be_unit(rows: np.ndarray) -> bool:
    """Whether no element is outside of [-1, 1], by more than rounding; NaN and infinity are."""
    if not rows.size:
        return True
    # One pass at the speed of memory: NumPy's isfinite is 5 times slower on float16. Of a copy,
    # since torch takes no array that is read-only.
    low, high = torch.aminmax(torch.from_numpy(np.array(rows)))
    return bool(low >= -1.01) and bool(high <= 1.01)
