"""Nearest rows of a matrix: exactly, or by an index of FAISS that measures what it misses.

| kind   | search                                    | bytes a vector (D dimensions)    |
|--------|-------------------------------------------|----------------------------------|
| exact  | all rows, as the evaluators do            | those of the embeddings' files   |
| hnsw   | a graph of neighbors (arXiv:1603.09320)   | 4 D + 8 M + 8                    |
| ivf    | the rows of the nearest cells             | 4 D + 8                          |
| ivfpq  | those, compressed (Jegou et al., 2011)    | D / 4 + 8                        |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clipx.search.exact import BLOCK, as_float32, nearest_rows
from clipx.types import UserError

Kind = Literal["exact", "hnsw", "ivf", "ivfpq"]
HNSW_NEIGHBORS = 32
HNSW_BUILD_EFFORT = 200
EFFORTS: dict[Kind, tuple[int, ...]] = {
    "exact": (0,),
    "hnsw": (16, 32, 64, 128, 256, 512),
    "ivf": (1, 2, 4, 8, 16, 32, 64, 128),
    "ivfpq": (1, 2, 4, 8, 16, 32, 64, 128),
}
"""How hard a search tries: efSearch of HNSW, nprobe (cells) of IVF."""
RERANKED = 8  # times k candidates of IVF-PQ, compared by whole vectors: codes alone recall 0.5


@dataclass(frozen=True)
class Spec:
    """What is searched how. cells: of IVF; code_bytes: of a compressed vector, a divisor of D"""

    kind: Kind
    effort: int = 0
    cells: int = 0
    code_bytes: int = 0


def spec_of(kind: Kind, num_rows: int, width: int, *, effort: int = 0) -> Spec:
    """The usual parameters for a matrix of this size. Raises UserError."""
    if kind in ("exact", "hnsw"):
        return Spec(kind, effort)
    # FAISS's guideline: 4 to 16 times the root, with at least 39 rows to train each cell.
    cells = int(max(1, min(4 * num_rows**0.5, num_rows / 39)))
    if kind == "ivf":
        return Spec(kind, effort, cells)
    if num_rows < 256:
        raise UserError(
            f"--kind ivfpq needs 256 vectors to train its codes, not {num_rows}; use exact"
        )
    code_bytes = max(
        part for part in range(1, width + 1) if width % part == 0 and part <= width / 4
    )
    return Spec(kind, effort, cells, code_bytes)


class VectorIndex:
    """Searches (N, D) rows of unit norm by their inner product.

    rows: of the embeddings, float16 or float32
    faiss_index: of all kinds but `exact`
    kept: (N,) bool, False for rows that no search finds; None keeps all
    """

    def __init__(
        self,
        spec: Spec,
        rows: np.ndarray,
        faiss_index: Any = None,
        kept: np.ndarray | None = None,
    ) -> None:
        self.spec = spec
        self.rows = rows
        self.kept = np.ones(len(rows), dtype=np.bool_) if kept is None else kept
        self.num_kept = int(self.kept.sum())
        self._among = None if self.num_kept == len(rows) else np.flatnonzero(self.kept)
        self._index = faiss_index
        self._selector: Any = None
        if faiss_index is not None and self.num_kept < len(rows):
            # It keeps a pointer to the numbers, so they have to live as long.
            self._removed = np.flatnonzero(~self.kept)
            faiss = import_faiss()
            self._selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(self._removed))

    @classmethod
    def build(
        cls, spec: Spec, rows: np.ndarray, *, seed: int = 0, other: VectorIndex | None = None
    ) -> VectorIndex:
        """Takes seconds for a hundred thousand rows, and an hour for a hundred million.

        other: of as many cells, which serve this one too: they take most of the time of an IVF
        """
        if spec.kind == "exact":
            return cls(spec, rows)
        faiss = import_faiss()
        width = rows.shape[1]
        product = faiss.METRIC_INNER_PRODUCT
        if spec.kind == "hnsw":
            index = faiss.IndexHNSWFlat(width, HNSW_NEIGHBORS, product)
            index.hnsw.efConstruction = HNSW_BUILD_EFFORT
        else:
            cells = faiss.IndexFlatIP(width)
            if other is not None:
                # A copy, of 4 D bytes a cell: the other frees its own.
                cells = faiss.clone_index(faiss.downcast_index(other._index.quantizer))
            if spec.kind == "ivf":
                index = faiss.IndexIVFFlat(cells, width, spec.cells, product)
            else:
                index = faiss.IndexIVFPQ(cells, width, spec.cells, spec.code_bytes, 8, product)
            index.cp.seed = seed
            # FAISS takes 256 rows a cell at most; these are spread over the corpus.
            count = min(len(rows), 256 * spec.cells)
            picked = np.random.default_rng(seed).choice(len(rows), count, replace=False)
            index.train(as_float32(rows[np.sort(picked)]))
        return cls(spec, rows[:0], index).extended(rows)

    def extended(self, rows: np.ndarray) -> VectorIndex:
        """With the rows that are not in it yet, which are added to the index in memory.

        rows: (N, D), which begin with those of the index
        """
        for first in range(len(self.rows), len(rows), BLOCK):
            # float16 files become float32 piece by piece
            self._index.add(as_float32(rows[first : first + BLOCK]))
        return VectorIndex(self.spec, rows, self._index)

    def with_effort(self, effort: int) -> VectorIndex:
        """The same index that tries so hard."""
        return VectorIndex(replace(self.spec, effort=effort), self.rows, self._index, self.kept)

    def is_same(self, other: VectorIndex) -> bool:
        """Whether both search the same structure, whatever their effort."""
        return self._index is other._index

    def without(self, removed: np.ndarray) -> VectorIndex:
        """The same index, whose searches do not find some rows, (n,) int64."""
        kept = self.kept.copy()
        kept[removed] = False
        return VectorIndex(self.spec, self.rows, self._index, kept)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """((Q, k) similarities, (Q, k) int64 rows), best first; -inf and -1 if there are fewer
        than k rows or the index has found fewer.

        queries: (Q, D) float32 of unit norm
        """
        if self.spec.kind == "exact":
            return nearest_rows(queries, self.rows, k, among=self._among)
        wanted = min(len(self.rows), k * RERANKED if self.spec.kind == "ivfpq" else k)
        scores, found = self._index.search(queries.numpy(), wanted, params=self._parameters(k))
        if self.spec.kind == "ivfpq":
            return self._rerank(queries, torch.from_numpy(found), k)
        missing = torch.from_numpy(found) < 0
        values = torch.from_numpy(scores).masked_fill(missing, -torch.inf)
        return _padded(values, torch.from_numpy(found), k)

    def _rerank(self, queries: Tensor, found: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values = torch.full(found.shape, -torch.inf)
        for number, (query, rows) in enumerate(zip(queries, found, strict=True)):
            there = rows >= 0
            # In the order of the file, which is read piece by piece.
            numbers = rows[there].numpy()
            vectors = torch.from_numpy(as_float32(self.rows[numbers]))
            values[number, there] = vectors @ query
        best = values.topk(min(k, values.shape[1]), dim=1)
        return _padded(best.values, found.gather(1, best.indices), k)

    def _parameters(self, k: int) -> Any:
        """Of one search, so that threads that search at once do not change each other's."""
        faiss = import_faiss()
        # Rows that are not kept are visited too, so that as many more have to be.
        visited_per_kept = len(self.rows) / max(1, self.num_kept)
        least = int(self.spec.effort * visited_per_kept)
        wanted = int(k * visited_per_kept)
        if self.spec.kind == "hnsw":
            effort = min(len(self.rows), max(wanted, least))
            return faiss.SearchParametersHNSW(efSearch=effort, sel=self._selector)
        # Cells that have twice as many rows as are wanted, so that a long list is filled.
        num_cells = -(-2 * wanted * self.spec.cells // len(self.rows))
        effort = min(self.spec.cells, max(least, num_cells))
        return faiss.SearchParametersIVF(nprobe=effort, sel=self._selector)

    def write(self, path: Path) -> None:
        """Raises OSError."""
        try:
            import_faiss().write_index(self._index, str(path))
        except RuntimeError as error:  # FAISS raises no other for a full disk
            raise OSError(f"{path}: {error}") from error

    @classmethod
    def open(
        cls, path: Path, spec: Spec, rows: np.ndarray, *, is_mapped: bool = True
    ) -> VectorIndex:
        """Memory-mapped: opened at once, and read where it is searched. Raises UserError.

        is_mapped: False to add rows to it
        """
        if spec.kind == "exact":
            return cls(spec, rows)
        faiss = import_faiss()
        try:
            flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if is_mapped else 0
            index = faiss.read_index(str(path), flags)
        except RuntimeError as error:
            reason = str(error).rpartition("failed: ")[2]  # before it are places in FAISS's source
            raise UserError(f"{path} cannot be read: {reason}; run `clipx index` again") from error
        if index.ntotal != len(rows) or index.d != rows.shape[1]:
            raise UserError(
                f"{path} has {index.ntotal} vectors of {index.d} dimensions, the embeddings have "
                f"{len(rows)} of {rows.shape[1]}; run `clipx index` again"
            )
        return cls(spec, rows, index)

    def num_bytes(self) -> int:
        """Of memory, roughly; see the table above."""
        num_rows, width = self.rows.shape
        per_row = {
            "exact": width * self.rows.itemsize,
            "hnsw": 4 * width + 8 * HNSW_NEIGHBORS + 8,
            "ivf": 4 * width + 8,
            "ivfpq": self.spec.code_bytes + 8,
        }
        return num_rows * per_row[self.spec.kind] + 4 * width * self.spec.cells


def _padded(values: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    missing = k - values.shape[1]
    if missing <= 0:
        return values[:, :k], numbers[:, :k]
    values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
    return values, torch.nn.functional.pad(numbers, (0, missing), value=-1)


def import_faiss() -> Any:
    """Raises UserError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "this kind of index needs FAISS: pip install 'clipx-train[search]', or use --kind exact"
        ) from error
    return faiss
