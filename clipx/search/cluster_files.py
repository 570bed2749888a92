"""Clusters as a table, a row for each picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipx.files import replacing
from clipx.search.clusters import Clusters
from clipx.search.metadata import column_of, import_parquet
from clipx.types import UserError

FORMATS = (".parquet", ".jsonl")


def check_file(path: Path) -> None:
    """Raises UserError for a name with another ending."""
    if path.suffix not in FORMATS:
        raise UserError(f"--out {path} must end with {' or '.join(FORMATS)}")


def write_clusters(
    path: Path,
    metadata: Any,
    rows: np.ndarray,
    clusters: Clusters,
    names: Sequence[str | None],
) -> None:
    """Columns key, row, cluster, name, similarity. Raises UserError.

    path: .parquet or .jsonl; names: (K,)
    metadata: a pyarrow table of the clustered pictures; rows: (N,) their rows in the folder
    """
    pa, pq = import_parquet()
    name_of = pa.array(names, type=pa.string())
    table = pa.table(
        {
            "key": column_of(metadata, "key"),
            "row": pa.array(rows, type=pa.int64()),
            "cluster": pa.array(clusters.labels, type=pa.int64()),
            "name": name_of.take(pa.array(clusters.labels)),
            "similarity": pa.array(clusters.similarity, type=pa.float32()),
        }
    )
    try:
        with replacing(path) as temporary:
            if path.suffix == ".parquet":
                pq.write_table(table, temporary)
            else:
                with temporary.open("w", encoding="utf-8") as file:
                    for batch in table.to_batches():
                        for row in batch.to_pylist():
                            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error}") from error
