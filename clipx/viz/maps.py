"""Two dimensions for many: maps of an embedding space. PCA always; t-SNE and UMAP where their
packages are installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

SEED = 0


@dataclass(frozen=True)
class Map:
    """place: (N, 2) float64; axes: what the two axes are called"""

    name: str
    place: Tensor
    axes: tuple[str, str]


def centered(image: Tensor, text: Tensor) -> Tensor:
    """(2 N, D) images, then texts, each without its modality's mean, which would otherwise be all
    that a map shows (arXiv:2203.02053).

    image, text: (N, D)
    """
    image, text = image.double(), text.double()
    return torch.cat([image - image.mean(0), text - text.mean(0)])


def pca(features: Tensor) -> Map:
    """features: (N, D) of mean 0"""
    u, s, _ = torch.linalg.svd(features, full_matrices=False)
    place = torch.zeros(len(features), 2, dtype=torch.float64)
    kept = min(2, len(s))
    place[:, :kept] = u[:, :kept] * s[:kept]
    # A singular vector has no sign of its own; the larger half goes up and to the right.
    largest = place.abs().argmax(0)
    place *= torch.where(place[largest, torch.arange(2)] < 0, -1.0, 1.0)
    total = float(s.square().sum()) or 1.0
    shares = [float(s[n]) ** 2 / total if n < len(s) else 0.0 for n in range(2)]
    names = [f"component {n + 1}, {share:.0%} of the variance" for n, share in enumerate(shares)]
    return Map("PCA", place, (names[0], names[1]))


def t_sne(features: Tensor) -> Map:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED, metric="cosine")
    return Map("t-SNE", torch.from_numpy(model.fit_transform(features.numpy())).double(), ("", ""))


def umap(features: Tensor) -> Map:
    from umap import UMAP

    neighbors = min(15, len(features) - 1)
    model = UMAP(
        n_components=2, n_neighbors=neighbors, random_state=SEED, metric="cosine", n_jobs=1
    )
    return Map("UMAP", torch.from_numpy(model.fit_transform(features.numpy())).double(), ("", ""))


OTHERS: dict[str, Callable[[Tensor], Map]] = {"sklearn": t_sne, "umap": umap}
"""By the package that each needs."""
LEAST = 10
"""Rows without which neighborhoods mean nothing."""


def maps_of(features: Tensor) -> tuple[list[Map], list[str]]:
    """The maps, and why another is missing. features: (N, D) of mean 0"""
    found, failures = [pca(features)], []
    for package, draw in OTHERS.items():
        if find_spec(package) and len(features) >= LEAST:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs are of no use to the reader of a report
                try:
                    found.append(draw(features))
                except Exception as error:  # noqa: BLE001  of a package that may not fit the others
                    failures.append(f"{package} drew no map: {type(error).__name__}: {error}")
    return found, failures
