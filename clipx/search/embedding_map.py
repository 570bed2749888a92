"""The map of a collection, a file beside its embeddings."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clipx.embed import Encoder
from clipx.files import replacing
from clipx.search.embeddings import Manifest
from clipx.search.projection import project
from clipx.search.regions import RegionLabel, label_regions
from clipx.search.vocabulary import Names
from clipx.types import UserError

FORMAT = 1
SEED = 0


@dataclass(frozen=True)
class EmbeddingMap:
    """points: (N, 2) float32 in [-1, 1], a row for each embedding; labels: of its regions"""

    points: np.ndarray
    labels: list[RegionLabel]


def build_map(
    rows: np.ndarray,
    names: Names,
    encoder: Encoder | None,
    *,
    note: Callable[[str], None] = lambda text: None,
) -> EmbeddingMap:
    """The map of embeddings. Raises UserError.

    rows: (N, D) of images, unit norm
    names: for regions; none make a map without labels, and need no encoder
    note: called with a line about each step
    """
    vectors = None
    if names:
        assert encoder is not None, "names are embedded"
        start = time.perf_counter()
        # Before the layout, which takes minutes.
        vectors = encoder.encode_text(names.texts).numpy()
        note(f"{len(names):,} names embedded in {time.perf_counter() - start:.0f} s")
    start = time.perf_counter()
    points = project(rows, seed=SEED)
    note(f"{len(rows):,} points laid out in {time.perf_counter() - start:.0f} s")
    labels = []
    if vectors is not None:
        start = time.perf_counter()
        labels = label_regions(points, rows, names, vectors, seed=SEED)
        note(f"{len(labels):,} regions named in {time.perf_counter() - start:.0f} s")
    return EmbeddingMap(points, labels)


def write_map(folder: Path, drawn: EmbeddingMap, manifest: Manifest) -> None:
    """Raises OSError.

    manifest: of the embeddings
    """
    about = {
        "format": FORMAT,
        **_identity(manifest),
        "labels": [asdict(label) for label in drawn.labels],
    }
    with replacing(map_file(folder)) as temporary, temporary.open("wb") as file:
        np.savez(file, points=drawn.points, about=np.array(json.dumps(about)))


def map_file(folder: Path) -> Path:
    return folder / "map.npz"


def open_map(folder: Path, manifest: Manifest) -> EmbeddingMap:
    """Raises UserError if the folder has no map, or one that is damaged or of other embeddings."""
    path = map_file(folder)
    remedy = f"run `clipx index {folder} --map`"
    if not path.exists():
        raise UserError(f"{folder} has no map; {remedy}")
    try:
        # NumPy would leave a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            points = arrays["points"]
            about = json.loads(str(arrays["about"]))
        labels = [RegionLabel(**fields) for fields in about["labels"]]
        identity = {name: about[name] for name in _identity(manifest)}
        if about["format"] != FORMAT or points.shape != (about["num_rows"], 2):
            raise ValueError(f"format {about['format']} with points of shape {points.shape}")
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}; {remedy}") from error
    if identity != _identity(manifest):
        raise UserError(
            f"{path} belongs to {identity['num_rows']:,} other embeddings, or to those of another "
            f"model; {remedy}"
        )
    return EmbeddingMap(points, labels)


def _identity(manifest: Manifest) -> dict[str, str | int | None]:
    """What determines the embeddings and their order."""
    return {
        "model_digest": manifest.model_digest,
        "corpus_digest": manifest.corpus_digest,
        "num_rows": manifest.num_embedded,
    }
