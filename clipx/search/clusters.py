"""k-means clusters of embeddings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from clipx.search.similar_pairs import unit_rows
from clipx.types import UserError

MAX_DEFAULT = 64
"""Clusters unless a number is given: more are not read by a person."""
TRAINED_ROWS = 100_000
TRAINED_ROWS_A_CLUSTER = 256  # as FAISS's k-means takes
BATCH = 4096  # rows of a step of k-means
STARTS = 3
MAX_SCORES = 8_000_000  # similarities that are held at a time, 32 MB


@dataclass(frozen=True)
class Clusters:
    """labels: (N,) int64, cluster 0 is the largest; similarity: (N,) float32 cosine to the center
    of the row's cluster; centers: (K, D) float32 of unit norm"""

    labels: np.ndarray
    similarity: np.ndarray
    centers: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """(K,) int64"""
        return np.bincount(self.labels, minlength=len(self.centers))

    @property
    def cohesion(self) -> np.ndarray:
        """(K,) mean similarity of a cluster's rows to its center."""
        total = np.bincount(self.labels, self.similarity, minlength=len(self.centers))
        return total / self.sizes

    def typical(self, cluster: int, count: int) -> np.ndarray:
        """The rows nearest to the center, (count,) or fewer, nearest first."""
        members = np.flatnonzero(self.labels == cluster)
        order = np.argsort(-self.similarity[members], kind="stable")
        return members[order[:count]]


def default_num_clusters(num_rows: int) -> int:
    """sqrt(N / 2), a rule of thumb (Mardia et al., Multivariate Analysis, 1979), but 64 at most."""
    return max(1, min(MAX_DEFAULT, round((num_rows / 2) ** 0.5)))


def cluster_rows(rows: np.ndarray, num_clusters: int, *, seed: int = 0) -> Clusters:
    """k-means in steps of small batches (Sculley, WWW 2010) on unit rows. Clusters that no row is
    nearest to are left out, so that rows with few distinct values have fewer than `num_clusters`.
    Raises UserError.

    rows: (N, D). Of many, centers are those of a part: 256 rows a cluster, 100,000 at least
    """
    if not 1 <= num_clusters <= len(rows):
        raise UserError(
            f"--clusters {num_clusters} is not in 1 ... {len(rows):,}, the number of pictures"
        )
    random = np.random.default_rng(seed)
    num_trained = min(len(rows), max(TRAINED_ROWS, TRAINED_ROWS_A_CLUSTER * num_clusters))
    picked = np.sort(random.choice(len(rows), num_trained, replace=False))
    k_means = MiniBatchKMeans(
        num_clusters,
        batch_size=BATCH,
        n_init=STARTS,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Of a corpus with fewer distinct pictures than clusters, which has fewer clusters then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        k_means.fit(unit_rows(rows[picked]))
    centers = unit_rows(k_means.cluster_centers_)
    labels, similarity = assign(rows, centers)
    sizes = np.bincount(labels, minlength=num_clusters)
    by_size = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    new_label = np.full(num_clusters, -1)
    new_label[by_size] = np.arange(len(by_size))
    return Clusters(new_label[labels], similarity, centers[by_size])


def assign(rows: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((N,) int64 nearest center, (N,) float32 similarity to it); of equally near ones the first.

    rows: (N, D); centers: (K, D) of unit norm
    """
    labels = [np.empty(0, dtype=np.int64)]
    similarity = [np.empty(0, dtype=np.float32)]
    block = max(1, MAX_SCORES // len(centers))
    for start in range(0, len(rows), block):
        scores = unit_rows(rows[start : start + block]) @ centers.T
        best = scores.argmax(axis=1)
        labels.append(best)
        similarity.append(scores[np.arange(len(best)), best])
    return np.concatenate(labels), np.concatenate(similarity)
