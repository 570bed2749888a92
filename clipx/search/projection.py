"""Embeddings in two dimensions, by UMAP (arXiv:1802.03426)."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from clipx.progress import note, progress
from clipx.types import UserError

NEIGHBORS = 15  # of UMAP's graph; its default
FEWEST = 5  # distinct rows that have neighborhoods
SMALL = 10_000  # rows up to which UMAP's authors take more epochs
EPOCHS_SMALL = 500
EPOCHS = 200
NEAR = 0.95  # share of the points along an axis that `draw_in` leaves in place
FARTHEST = 0.15


def project(
    rows: np.ndarray, *, seed: int = 0, progress: Callable[..., Any] = progress
) -> np.ndarray:
    """(N, 2) float32 in [-1, 1]: rows that are near are near. Raises UserError.

    The same for the same rows and seed on a machine. Equal rows share a place.

    rows: (N, D) of unit norm; progress: as `clipx.progress.progress`
    """
    if len(rows) == 0:
        raise UserError("there are no embeddings to draw a map of; embed a corpus with samples")
    if not np.isfinite(rows).all():
        damaged = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        raise UserError(
            f"{len(damaged):,} embeddings are not finite, first that of row {damaged[0]:,}; "
            "embed the corpus again"
        )
    # UMAP's graph falls apart where a row has more copies than neighbors.
    first, copy_of = _distinct(rows)
    unique = np.asarray(rows[first], dtype=np.float32)
    if len(unique) < FEWEST:
        points = _circle(len(unique))
    else:
        points = normalize(_umap(unique, seed, progress))
    return points[copy_of]


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U,) the first row of each value, and (N,) the place of each row's value in them."""
    places: dict[bytes, int] = {}
    first = []
    copy_of = np.empty(len(rows), dtype=np.int64)
    for number, row in enumerate(rows):
        place = places.setdefault(row.tobytes(), len(first))
        if place == len(first):
            first.append(number)
        copy_of[number] = place
    return np.array(first, dtype=np.int64), copy_of


def _circle(count: int) -> np.ndarray:
    """(count, 2) for too few rows to have neighborhoods."""
    if count == 1:
        return np.zeros((1, 2), dtype=np.float32)
    angles = 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class EpochReader(io.StringIO):
    """A file that tqdm writes the number of an epoch to, which is passed on to a progress bar."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        super().__init__()
        self._advance = advance
        self._done = 0

    def write(self, text: str) -> int:
        number = text.strip()
        # tqdm writes the last number twice.
        if number.isdecimal() and int(number) > self._done:
            self._advance(int(number) - self._done)
            self._done = int(number)
        return len(text)


def _umap(rows: np.ndarray, seed: int, progress: Callable[..., Any]) -> np.ndarray:
    """(U, 2). Raises UserError where UMAP is not installed."""
    UMAP, nearest_neighbors = import_umap()
    count = min(NEIGHBORS, len(rows) - 1)
    epochs = EPOCHS_SMALL if len(rows) <= SMALL else EPOCHS
    with warnings.catch_warnings():
        # That a seed means one thread, and that graphs of few rows are dense.
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        knn = nearest_neighbors(
            rows,
            n_neighbors=count,
            metric="cosine",
            metric_kwds={},
            angular=True,
            random_state=np.random.RandomState(seed),
            n_jobs=1,
        )
        seconds = time.perf_counter() - start
        note(f"nearest neighbors of {len(rows):,} distinct embeddings found in {seconds:.0f} s")
        with progress("layout of the map, in epochs", epochs) as advance:
            model = UMAP(
                n_neighbors=count,
                metric="cosine",
                precomputed_knn=knn,
                n_epochs=epochs,
                # Distances between islands mean something only where they start from PCA
                # (Kobak and Linderman, Nature Biotechnology 39, 2021).
                init="pca",
                random_state=seed,
                n_jobs=1,  # with a seed, UMAP takes no other value
                verbose=True,
                tqdm_kwds={"file": EpochReader(advance), "bar_format": "{n}"},
            )
            # With verbose, which the epochs need, UMAP prints lines about itself too.
            with redirect_stdout(io.StringIO()):
                return model.fit_transform(rows)


def import_umap() -> tuple[Any, Any]:
    """UMAP and its search for neighbors. Raises UserError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TensorFlow is not there
            from umap import UMAP
            from umap.umap_ import nearest_neighbors
    except ImportError as error:
        raise UserError("a map needs umap-learn: pip install 'clipx-train[search,viz]'") from error
    return UMAP, nearest_neighbors


def normalize(points: np.ndarray) -> np.ndarray:
    """(N, 2) float32 in [-1, 1], turned so that the variance along x is the largest, with far
    islands drawn in. A layout that is turned, mirrored, moved or scaled gives the same.

    points: (N, 2)
    """
    centered = points.astype(np.float64)
    centered -= centered.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    turned = centered @ axes.T
    # An axis has no sign of its own: the side with the longer tail is the positive one.
    skewed = (turned**3).sum(axis=0)
    turned *= np.where(skewed < 0, -1, 1)
    drawn = draw_in(turned)
    drawn -= (drawn.max(axis=0) + drawn.min(axis=0)) / 2
    extent = np.abs(drawn).max()
    # Rounding to float32 must not leave the square.
    return np.clip(drawn / max(extent, 1e-12), -1, 1).astype(np.float32)


def draw_in(points: np.ndarray) -> np.ndarray:
    """(N, 2) points, of which those far outside are moved towards the others.

    UMAP throws small groups of near-duplicates far out, and the map of all others would be small.
    Outside of an ellipse around NEAR of the points along each axis, farther points stay farther,
    but at most by FARTHEST radii.
    """
    middle = np.median(points, axis=0)
    offset = points - middle
    radii = np.quantile(np.abs(offset), NEAR, axis=0)
    distance = np.linalg.norm(offset / np.maximum(radii, 1e-12), axis=1)
    beyond = np.maximum(distance - 1, 0)
    new_distance = np.minimum(distance, 1) + FARTHEST * np.tanh(beyond / FARTHEST)
    return middle + offset * (new_distance / np.maximum(distance, 1e-12))[:, None]
