"""Regions of a map at several levels, and a name for each by zero-shot."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipx.search.vocabulary import Names

COARSEST = 12  # regions
FINER = 4  # times as many regions on the next level, so that each has half the width
LEVELS = 4
FEWEST_CAPTIONS = 2  # of a region that have its name
WORST_SHARE = 0.5
NAMES_A_REGION = 15  # of the most frequent names, that a level chooses from
ROWS_A_REGION = 25  # on average, on the finest level
BLOCK = 16_384  # rows whose float32 copy is made at a time


@dataclass(frozen=True)
class RegionLabel:
    """text: the name of a region; x, y: its center on the map; level: 0 is the coarsest
    num_rows: that the region has"""

    text: str
    x: float
    y: float
    level: int
    num_rows: int


def label_regions(
    points: np.ndarray, rows: np.ndarray, names: Names, vectors: np.ndarray, *, seed: int
) -> list[RegionLabel]:
    """Names of the regions of all levels, the coarsest first.

    A region has the name that its mean embedding is nearer to than the mean of all rows is, by the
    largest margin. Of regions of a level, each has another name.

    points: (N, 2) on the map; rows: (N, D) their embeddings; vectors: (V, D) of the names, unit
    norm
    """
    labels = []
    for level in range(LEVELS):
        num_regions = COARSEST * FINER**level
        # The coarsest level is there for a few rows, too.
        num_regions = min(num_regions, max(1, len(points) // ROWS_A_REGION))
        if level > 0 and num_regions < COARSEST * FINER ** (level - 1) * 2:
            break
        region = cluster(points, num_regions, seed)
        means, counts = region_means(rows, region)
        centers = middle_points(points, region)
        overall = counts @ means / counts.sum()
        margins = (means - overall) @ vectors.T
        if names.occurrences is not None:
            margins = likely_margins(margins, names.occurrences, region)
        for number, name in distinct_choices(margins).items():
            x, y = centers[number].tolist()
            labels.append(RegionLabel(names.texts[name], x, y, level, int(counts[number])))
    return labels


def cluster(points: np.ndarray, num_regions: int, seed: int) -> np.ndarray:
    """(N,) int64 region of each point, by k-means; every region has a point."""
    from sklearn.cluster import KMeans

    model = KMeans(num_regions, n_init=1, random_state=seed, max_iter=50)
    with warnings.catch_warnings():
        # That there are fewer distinct points than regions.
        warnings.simplefilter("ignore")
        found = model.fit_predict(points.astype(np.float64))
    return np.unique(found, return_inverse=True)[1]


def region_means(rows: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, D) mean of each region's rows, and (R,) their number, float64.

    rows: (N, D); region: (N,) in 0 ... R - 1
    """
    counts = np.bincount(region).astype(np.float64)
    member = membership(region).tocsc()
    sums = np.zeros((len(counts), rows.shape[1]))
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        sums += member[:, block] @ rows[block].astype(np.float64)
    return sums / counts[:, None], counts


def membership(region: np.ndarray) -> Any:
    """(R, N) scipy.sparse, 1 where a row is in a region.

    region: (N,) in 0 ... R - 1
    """
    from scipy.sparse import csr_matrix

    rows = np.arange(len(region))
    return csr_matrix((np.ones(len(region)), (region, rows)))


def likely_margins(margins: np.ndarray, occurrences: Any, region: np.ndarray) -> np.ndarray:
    """(R, V) margins, 0 for names that the captions of a region do not have more often than others.

    margins: (R, V); occurrences: (N, V) sparse, as of Names; region: (N,)
    """
    # A large region has a name that many captions have, not that of a few odd pictures.
    likely = np.arange(margins.shape[1]) < NAMES_A_REGION * len(margins)
    counts = (membership(region) @ occurrences).toarray()
    shares = counts / np.bincount(region)[:, None]
    overall = counts.sum(axis=0) / len(region)
    is_typical = (counts >= FEWEST_CAPTIONS) & (shares > overall) & likely
    return np.where(is_typical, margins, 0)


def middle_points(points: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(R, 2) the point of each region that is nearest to its median, which may lie between islands.

    points: (N, 2); region: (N,) in 0 ... R - 1
    """
    middle = np.empty((region.max() + 1, 2), dtype=points.dtype)
    order = np.argsort(region, kind="stable")
    starts = np.searchsorted(region[order], np.arange(len(middle) + 1))
    for number in range(len(middle)):
        inside = points[order[starts[number] : starts[number + 1]]]
        distance = np.linalg.norm(inside - np.median(inside, axis=0), axis=1)
        middle[number] = inside[distance.argmin()]
    return middle


def distinct_choices(margins: np.ndarray) -> dict[int, int]:
    """Region -> name: the largest margins first, each name once. A region that finds its best names
    taken has none, rather than one with less than WORST_SHARE of its best margin.

    margins: (R, V)
    """
    # A region that finds its first names taken looks at as many as there are regions, at most.
    depth = min(margins.shape)
    best = np.argsort(-margins, axis=1, kind="stable")[:, :depth]
    pairs = []
    for region, candidates in enumerate(best):
        lowest = WORST_SHARE * margins[region, candidates[0]]
        for name in candidates:
            margin = margins[region, name]
            if margin > 0 and margin >= lowest:
                pairs.append((-margin, region, int(name)))
    pairs.sort()
    chosen: dict[int, int] = {}
    taken: set[int] = set()
    for _, region, name in pairs:
        if region not in chosen and name not in taken:
            chosen[region] = name
            taken.add(name)
    return dict(sorted(chosen.items()))
