"""Upload the embeddings of a folder to a collection of Qdrant: `clipx index DIR --to URL`.

The id of a point is the number of its row, so that an upload that was stopped counts the points
that are there and uploads the others. Removed rows are not uploaded, or deleted again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipx.progress import ShowProgress
from clipx.search.embeddings import Modality, open_complete, shown_differences
from clipx.search.folder_store import column_types, read_table
from clipx.search.qdrant_connection import QdrantConnection, QdrantError
from clipx.search.qdrant_filters import LOWER
from clipx.search.qdrant_record import CollectionRecord, Quantization, read_record
from clipx.search.removal import removed_rows
from clipx.search.vectors import map_vectors
from clipx.types import UserError

PART = 10_000  # rows whose points are counted together when an upload is continued
BATCH = 256  # points of a request, about a megabyte for 512 dimensions


@dataclass(frozen=True)
class UploadCounts:
    """num_points: of the collection now; num_uploaded: of them, in this call; num_wanted: of the
    collection once all tasks have ended"""

    num_points: int
    num_uploaded: int
    num_wanted: int


class QdrantUpload:
    """The rows of one folder on their way to one collection.

    vectors: N, of which only those of a request are in memory; table: their metadata; ids: of the
    rows that the collection shall have
    """

    def __init__(
        self,
        connection: QdrantConnection,
        folder: Path,
        modality: Modality,
        quantization: Quantization = "none",
        *,
        on_disk: bool = False,
    ) -> None:
        """Raises UserError for a folder that cannot be read."""
        self.connection = connection
        self.client = connection.client
        self.folder = folder
        self.on_disk = on_disk
        manifest = open_complete(folder)
        self.vectors = map_vectors(folder, manifest, modality)
        self.table = read_table(folder, manifest)
        self.removed = removed_rows(folder, self.table)
        is_wanted = np.ones(len(self.vectors), dtype=np.bool_)
        is_wanted[self.removed] = False
        if modality == "text":
            # Zeros stand for samples without a caption.
            is_wanted &= np.concatenate([part.any(axis=1) for part in self.vectors.parts])
        self.ids = np.flatnonzero(is_wanted)
        columns = column_types(self.table)
        self.record = CollectionRecord(manifest, modality, columns, len(self.vectors), quantization)

    def run(self, progress: ShowProgress, *, rank: int = 0, world_size: int = 1) -> UploadCounts:
        """Upload the parts of this rank. Raises UserError."""
        todo = self._prepare()
        todo = todo[todo // PART % world_size == rank]
        with progress("uploading points", len(todo)) as advance:
            for first in range(0, len(todo), BATCH):
                batch = todo[first : first + BATCH]
                self._upsert(batch)
                advance(len(batch))
        self._delete_removed()
        # Last: until all points are there, the collection describes those of the upload before.
        metadata = self.record.to_metadata()
        self.connection.call(self.client.update_collection, metadata=metadata)
        count = self._count(None)
        if count > len(self.ids) or (world_size == 1 and count < len(self.ids)):
            raise UserError(
                f"{self.connection.url} has {count:,} points after the upload, and {self.folder} "
                f"{len(self.ids):,}: something else writes to it; delete it and upload again"
            )
        return UploadCounts(count, len(todo), len(self.ids))

    def _prepare(self) -> np.ndarray:
        """Make the collection, or check that it is of these embeddings. Returns the ids that are to
        be uploaded. Raises UserError."""
        if not self.connection.call(self.client.collection_exists):
            try:
                self._create()
                return self.ids
            except QdrantError:
                # Another task may have made it since.
                if not self.connection.call(self.client.collection_exists):
                    raise
        found = read_record(self.connection)
        self._check(found)
        wanted = self.record.quantization
        if wanted not in ("none", found.quantization):
            raise UserError(
                f"{self.connection.url} has quantization {found.quantization}, not {wanted}; leave "
                "out --quantization, or delete the collection"
            )
        self.record = replace(self.record, quantization=found.quantization)
        # Types of columns that were unified anew change the payload of all points.
        for name, kind in found.columns.items():
            if self.record.columns.get(name) != kind:
                return self.ids
        return self._missing()

    def _create(self) -> None:
        from qdrant_client import models

        quantization: Any = None
        if self.record.quantization == "int8":
            # The largest hundredth of values is clipped, as Qdrant's documentation advises.
            scalar = models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=0.99, always_ram=True
            )
            quantization = models.ScalarQuantization(scalar=scalar)
        elif self.record.quantization == "binary":
            # A query of bytes finds 0.91 of the 10 nearest where one of bits finds 0.83.
            binary = models.BinaryQuantizationConfig(
                always_ram=True, query_encoding=models.BinaryQuantizationQueryEncoding.SCALAR8BITS
            )
            quantization = models.BinaryQuantization(binary=binary)
        is_half = self.record.manifest.dtype == "float16"
        vectors = models.VectorParams(
            size=self.vectors.width,
            # Rows are of unit norm, so this is the cosine, of the very numbers in the files.
            distance=models.Distance.DOT,
            # Quantized vectors are searched; whole ones only compare the best of them.
            on_disk=self.on_disk or quantization is not None,
            datatype=models.Datatype.FLOAT16 if is_half else models.Datatype.FLOAT32,
        )
        self.connection.call(
            self.client.create_collection,
            vectors_config=vectors,
            quantization_config=quantization,
            on_disk_payload=True,
            metadata=self.record.to_metadata(),
        )

    def _check(self, found: CollectionRecord) -> None:
        """Raises UserError if the collection has other embeddings."""
        ours = self.record
        shown = []
        if found.modality != ours.modality:
            shown.append(f"modality {found.modality} there, {ours.modality} here")
        if not ours.manifest.has_grown_from(found.manifest):
            shown += shown_differences(found.manifest.differences(ours.manifest))
        if shown:
            raise UserError(
                f"{self.connection.url} has embeddings of something else: {'; '.join(shown)}; "
                "choose another collection, or delete it"
            )

    def _missing(self) -> np.ndarray:
        """Ids of the parts that the collection does not have whole."""
        if self._count(None) == 0:
            return self.ids
        missing = []
        for first in range(0, len(self.vectors), PART):
            start, stop = np.searchsorted(self.ids, (first, first + PART))
            part = self.ids[start:stop]
            if len(part) and self._count(part) != len(part):
                missing.append(part)
        return np.concatenate([*missing, np.empty(0, dtype=np.int64)])

    def _count(self, ids: np.ndarray | None) -> int:
        """Points of these ids, or of the whole collection."""
        from qdrant_client import models

        condition = None
        if ids is not None:
            condition = models.Filter(must=[models.HasIdCondition(has_id=ids.tolist())])
        result = self.connection.call(self.client.count, count_filter=condition, exact=True)
        return result.count

    def _upsert(self, ids: np.ndarray) -> None:
        from qdrant_client import models

        vectors = self.vectors.take(ids).astype(np.float32)
        payloads = [payload_of(values) for values in self.table.take(ids).to_pylist()]
        batch = models.Batch(ids=ids.tolist(), vectors=vectors.tolist(), payloads=payloads)
        # Waits until the points are stored, so that those which are counted stay.
        self.connection.call(self.client.upsert, points=batch, wait=True)

    def _delete_removed(self) -> None:
        from qdrant_client import models

        for first in range(0, len(self.removed), PART):
            ids = self.removed[first : first + PART].tolist()
            selector = models.PointIdsList(points=ids)
            self.connection.call(self.client.delete, points_selector=selector, wait=True)


def payload_of(values: dict[str, Any]) -> dict[str, Any]:
    """The columns that a sample has, as JSON, with its texts in lower case for `~`."""
    payload: dict[str, Any] = {}
    lower = {}
    for name, value in values.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            continue  # JSON has no NaN
        payload[name] = value
        if isinstance(value, str):
            lower[name] = value.lower()
    payload[LOWER] = lower
    return payload
