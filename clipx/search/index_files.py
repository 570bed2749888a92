"""The files of an index beside its embeddings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipx.files import replacing, write_whole
from clipx.search.build_index import Chosen, Trial
from clipx.search.embeddings import Manifest, Modality
from clipx.search.vector_index import Spec, VectorIndex
from clipx.types import UserError

MOST_GROWTH = 2
"""Times as many rows as an index was trained on that it may have before it is built anew."""


def index_file(folder: Path, modality: Modality) -> Path:
    return folder / f"{modality}.index"


def about_file(folder: Path, modality: Modality) -> Path:
    return folder / f"{modality}_index.json"


def write_index(
    folder: Path,
    modality: Modality,
    chosen: Chosen,
    manifest: Manifest,
    *,
    has_grown: bool = False,
) -> None:
    """Write the index with its measurements, and clip-retrieval's list of indices. Raises
    OSError.

    has_grown: rows were added to the index that is there
    """
    built_rows = len(chosen.index.rows)
    about = _read_about(folder, modality) if has_grown else None
    if about is not None:
        built_rows = about.built_rows
    path = index_file(folder, modality)
    about_path = about_file(folder, modality)
    about_path.unlink(missing_ok=True)  # until the index is there, the old one is not described
    if chosen.index.spec.kind == "exact":
        path.unlink(missing_ok=True)
    else:
        with replacing(path) as temporary:
            chosen.index.write(temporary)
    record: dict[str, Any] = {
        "spec": asdict(chosen.index.spec),
        "num_rows": len(chosen.index.rows),
        "built_rows": built_rows,
        "model_digest": manifest.model_digest,
        "corpus_digest": manifest.corpus_digest,
        "measured": _record(chosen.measured),
        "trials": [_record(trial) for trial in chosen.trials],
    }
    write_whole(about_path, json.dumps(record, indent=1) + "\n")
    paths = json.dumps({folder.resolve().name: str(folder.resolve())}, indent=1)
    write_whole(folder / "indices_paths.json", paths + "\n")


def _record(trial: Trial) -> dict[str, Any]:
    record = asdict(trial)
    record |= record.pop("spec")
    return record


def open_index(
    folder: Path, modality: Modality, manifest: Manifest, rows: np.ndarray
) -> VectorIndex:
    """The index of a folder; exact search if it has none. Raises UserError."""
    about = _read_about(folder, modality)
    if about is None:
        return VectorIndex(Spec("exact"), rows)
    if about.model_digest != manifest.model_digest or about.num_rows != len(rows):
        raise UserError(
            f"{about_file(folder, modality)} belongs to {about.num_rows:,} other embeddings, or to "
            "those of another model; run `clipx index` again"
        )
    return VectorIndex.open(index_file(folder, modality), about.spec, rows)


def grown_index(
    folder: Path, modality: Modality, manifest: Manifest, rows: np.ndarray, kind: str
) -> VectorIndex | None:
    """The folder's index with the rows that the corpus has grown by since; None if it has no index
    of this kind, or one that has to be built anew. Raises UserError."""
    about = _read_about(folder, modality)
    if about is None or about.spec.kind == "exact" or kind not in ("auto", about.spec.kind):
        return None
    is_earlier = False
    for past in manifest.earlier:
        same_rows = past["num_embedded"] == about.num_rows
        is_earlier |= same_rows and past["corpus_digest"] == about.corpus_digest
    # Cells and codes are trained on the rows of that time.
    is_outgrown = about.spec.kind != "hnsw" and len(rows) > MOST_GROWTH * about.built_rows
    if about.model_digest != manifest.model_digest or not is_earlier or is_outgrown:
        return None
    index = VectorIndex.open(
        index_file(folder, modality), about.spec, rows[: about.num_rows], is_mapped=False
    )
    return index.extended(rows)


@dataclass(frozen=True)
class _About:
    """built_rows: rows of the embeddings when the index was built, to which others were added"""

    spec: Spec
    model_digest: str
    corpus_digest: str
    num_rows: int
    built_rows: int


def _read_about(folder: Path, modality: Modality) -> _About | None:
    """Raises UserError."""
    path = about_file(folder, modality)
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
        num_rows = record["num_rows"]
        return _About(
            Spec(**record["spec"]),
            record["model_digest"],
            record.get("corpus_digest", ""),  # absent in those of earlier versions
            num_rows,
            record.get("built_rows", num_rows),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}; run `clipx index` again") from error
