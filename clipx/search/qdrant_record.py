"""What a collection of Qdrant knows of its embeddings, in the metadata of the collection."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from clipx.search.embeddings import FORMAT, Manifest, Modality
from clipx.search.qdrant_connection import QdrantConnection
from clipx.types import UserError

Quantization = Literal["none", "int8", "binary"]
_FIELD = "clipx"


@dataclass(frozen=True)
class CollectionRecord:
    """manifest: of the folder; columns: name -> type of its metadata, as pyarrow writes it
    num_rows: of the folder, removed ones included; quantization: of the vectors in memory
    """

    manifest: Manifest
    modality: Modality
    columns: dict[str, str]
    num_rows: int
    quantization: Quantization

    def to_metadata(self) -> dict[str, Any]:
        return {_FIELD: asdict(self)}


def read_record(connection: QdrantConnection) -> CollectionRecord:
    """Raises UserError for a collection that `clipx index --to` did not make."""
    info = connection.call(connection.client.get_collection)
    data = (info.config.metadata or {}).get(_FIELD)
    if data is None:
        raise UserError(
            f"{connection.url} is a collection of something else (or its server is older than "
            "1.16, which stores no metadata of collections); choose another name"
        )
    try:
        fields = dict(data)
        manifest = Manifest.of(fields.pop("manifest"))
        record = CollectionRecord(manifest=manifest, **fields)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{connection.url} was uploaded by another version of clipx ({error}); delete the "
            "collection and upload it again"
        ) from error
    if manifest.format != FORMAT:
        raise UserError(
            f"{connection.url} has format {manifest.format}, and this clipx knows {FORMAT}; "
            "upload it again"
        )
    return record
