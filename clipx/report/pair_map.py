"""Geometry of a map of images and their texts, in pixels. charts.svg.j2 draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clipx.report.projections import Projection

WIDTH, HEIGHT = 640, 470
EDGE = 36  # pixels around the points, for half a picture and the titles of the axes
PICTURE = 26  # width and height
MIN_GAP = 1.3 * PICTURE  # between the centers of two pictures

Position = tuple[float, float]


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
