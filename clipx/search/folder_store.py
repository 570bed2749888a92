"""Embeddings in a folder of `clipx embed`, with the index of `clipx index`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipx.cores import usable_cores
from clipx.search.embeddings import Manifest, Modality, open_complete
from clipx.search.exact import nearest_rows
from clipx.search.filters import passing
from clipx.search.index_files import open_index
from clipx.search.metadata import import_parquet, read_metadata
from clipx.search.parts import Embeddings
from clipx.search.removal import removed_rows
from clipx.search.store import describe_columns
from clipx.search.vector_index import Spec, VectorIndex
from clipx.search.vectors import read_vectors
from clipx.types import UserError

EXAMPLE_ROWS = 10_000


class FolderStore:
    """rows: (N, D) of the embeddings; table: their metadata, of pyarrow; index: of the same rows"""

    def __init__(
        self, folder: Path, manifest: Manifest, rows: np.ndarray, index: VectorIndex, table: Any
    ) -> None:
        self.folder = folder
        self.name = folder.resolve().name or "index"
        self.source = str(folder)
        self.manifest = manifest
        self.rows = rows
        self.index = index
        self.table = table
        self.num_rows = len(rows)
        self.kind: str = index.spec.kind
        # A search keeps a core busy and holds blocks of rows. More of them at once than there are
        # cores would only take more memory.
        self._turns = threading.BoundedSemaphore(usable_cores())

    @classmethod
    def open(cls, folder: Path, modality: Modality, *, exact: bool = False) -> FolderStore:
        """Raises UserError."""
        manifest = open_complete(folder)
        rows = read_vectors(folder, manifest, modality)
        if len(rows) == 0:
            raise UserError(
                f"{folder} has no embeddings: none of the {manifest.num_samples:,} samples of the "
                f"corpus could be embedded, for the reasons in {folder / 'quarantine'}"
            )
        table = read_table(folder, manifest)
        index = VectorIndex(Spec("exact"), rows)
        if not exact:
            index = open_index(folder, modality, manifest, rows)
        return cls(folder, manifest, rows, index.without(removed_rows(folder, table)), table)

    def nearest(
        self, query: Tensor, k: int, *, where: str | None = None
    ) -> list[tuple[int, float]]:
        """See `Store.nearest`."""
        with self._turns:
            if where is None:
                scores, rows = self.index.search(query[None], k)
            else:
                # Exactly, over the rows that pass: an index would find others first.
                allowed = passing(where, self.table)
                allowed = allowed[self.index.kept[allowed]]
                scores, rows = nearest_rows(query[None], self.rows, k, among=allowed)
        pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [(row, score) for row, score in pairs if row >= 0]

    def missing(self, rows: Sequence[int]) -> list[int]:
        """See `Store.missing`."""
        return [row for row in rows if not (0 <= row < self.num_rows and self.index.kept[row])]

    def metadata(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """See `Store.metadata`."""
        found = []
        for row in rows:
            (values,) = self.table.slice(row, 1).to_pylist()
            found.append({name: value for name, value in values.items() if value is not None})
        return found

    def vectors(self, rows: Sequence[int]) -> Tensor:
        """See `Store.vectors`."""
        return torch.from_numpy(np.array(self.rows[list(rows)], dtype=np.float32))

    def columns(self) -> list[dict[str, Any]]:
        """See `Store.columns`."""
        # Neighbors are alike, so the rows are spread over the corpus.
        numbers = np.arange(0, self.num_rows, max(1, self.num_rows // EXAMPLE_ROWS))
        numbers = numbers[self.index.kept[numbers]]
        return describe_columns(column_types(self.table), self.table.take(numbers).to_pylist())


def read_table(folder: Path, manifest: Manifest) -> Any:
    """The metadata of all parts, of pyarrow. Raises UserError if a part has not a row for each
    embedding."""
    _, pq = import_parquet()
    files = Embeddings(folder, manifest.num_parts)
    paths = [files.metadata_file(part) for part in range(manifest.num_parts)]
    table = read_metadata(paths)
    for part, path in enumerate(paths):
        num_embeddings = len(np.load(files.image_file(part), mmap_mode="r"))
        num_rows = pq.read_metadata(path).num_rows
        if num_rows != num_embeddings:
            raise UserError(
                f"{files.image_file(part)} has {num_embeddings:,} embeddings and {path} "
                f"{num_rows:,} rows; delete both and embed again"
            )
    return table


def column_types(table: Any) -> dict[str, str]:
    """name -> type, as pyarrow writes it"""
    return {field.name: str(field.type) for field in table.schema}
