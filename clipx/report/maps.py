"""Maps of an embedding space in two dimensions: PCA, t-SNE, and UMAP if it is installed, and the
positions of images and texts on them, which charts.svg.j2 draws."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

SEED = 0
MIN_ROWS = 10  # with fewer, neighborhoods mean nothing

# The drawing, in pixels.
WIDTH, HEIGHT = 640, 470
EDGE = 36  # pixels around the points, for half a picture and the titles of the axes
PICTURE = 26  # width and height
MIN_GAP = 1.3 * PICTURE  # between the centers of two pictures

Position = tuple[float, float]


@dataclass(frozen=True)
class Projection:
    """place: (N, 2) float64; axes: titles of the two axes"""

    name: str
    place: Tensor
    axes: tuple[str, str] = ("", "")


def centered(image: Tensor, text: Tensor) -> Tensor:
    """(2 N, D) images, then texts, each without the mean of its modality: with the means, a map
    shows little but the gap between the modalities (arXiv:2203.02053).

    image, text: (N, D)
    """
    image = image.double()
    text = text.double()
    return torch.cat([image - image.mean(0), text - text.mean(0)])


def projections(features: Tensor) -> tuple[list[Projection], list[str]]:
    """The projections, and messages about failed ones.

    features: (N, D) of mean 0
    """
    methods = [pca]
    if len(features) >= MIN_ROWS:
        methods.append(t_sne)
        if find_spec("umap"):
            methods.append(umap)
    done = []
    failures = []
    for method in methods:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of no use to the reader of a report
            try:
                done.append(method(features))
            except Exception as error:  # noqa: BLE001  versions of the packages may not fit
                reason = f"{type(error).__name__}: {error}"
                failures.append(f"{method.__name__} drew no map: {reason}")
    return done, failures


def pca(features: Tensor) -> Projection:
    from sklearn.decomposition import PCA

    if not features.any():  # a single pair without its means: no variance, of which to take shares
        return Projection("PCA", torch.zeros(len(features), 2, dtype=torch.float64))
    model = PCA(2, svd_solver="full")
    place = fit(model, features)
    first, second = model.explained_variance_ratio_
    axes = (
        f"component 1, {first:.0%} of the variance",
        f"component 2, {second:.0%} of the variance",
    )
    return Projection("PCA", place, axes)


def t_sne(features: Tensor) -> Projection:
    from sklearn.manifold import TSNE

    # 30 is scikit-learn's default, and must be below the number of rows.
    perplexity = min(30.0, (len(features) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED, metric="cosine")
    return Projection("t-SNE", fit(model, features))


def umap(features: Tensor) -> Projection:
    from umap import UMAP

    model = UMAP(
        n_components=2,
        n_neighbors=min(15, len(features) - 1),
        random_state=SEED,
        metric="cosine",
        n_jobs=1,  # with a seed, UMAP takes no other value
    )
    return Projection("UMAP", fit(model, features))


def fit(model: Any, features: Tensor) -> Tensor:
    return torch.from_numpy(model.fit_transform(features.numpy())).double()


@dataclass(frozen=True)
class MapPair:
    """Positions of an image and its text; has_picture: the image is shown, rather than a disc"""

    name: str
    image: Position
    text: Position
    has_picture: bool


def map_pairs(projection: Projection, names: Sequence[str], *, max_pictures: int) -> list[MapPair]:
    """projection: of the N images, then their N texts; names: of the N pairs"""
    low = projection.place.min(0).values
    span = projection.place.max(0).values - low
    # A coordinate that all points share lies in the middle.
    share = torch.where(span > 0, (projection.place - low) / span, 0.5)
    x = EDGE + share[:, 0] * (WIDTH - 2 * EDGE)
    y = HEIGHT - EDGE - share[:, 1] * (HEIGHT - 2 * EDGE)  # pixels grow downwards
    positions = list(zip(x.tolist(), y.tolist(), strict=True))
    texts = positions[len(names) :]

    pairs = []
    pictures: list[Position] = []
    for name, image, text in zip(names, positions, texts, strict=False):
        # The first images whose pictures do not overlap have one.
        has_picture = len(pictures) < max_pictures
        for other_x, other_y in pictures:
            if max(abs(image[0] - other_x), abs(image[1] - other_y)) < MIN_GAP:
                has_picture = False
        if has_picture:
            pictures.append(image)
        pairs.append(MapPair(name, image, text, has_picture))
    return pairs
