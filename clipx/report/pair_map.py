"""Geometry of a map of images and their texts, in pixels. charts.svg.j2 draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    positions = pixels(projection.place)
    images = positions[: len(names)]
    texts = positions[len(names) :]
    with_picture = spread_out(images, max_pictures)
    pairs = []
    for number, name in enumerate(names):
        pairs.append(MapPair(name, images[number], texts[number], number in with_picture))
    return pairs


def pixels(place: Tensor) -> list[Position]:
    low = place.min(0).values
    span = place.max(0).values - low
    # A coordinate that all points share lies in the middle.
    share = torch.where(span > 0, (place - low) / span, 0.5)
    x = EDGE + share[:, 0] * (WIDTH - 2 * EDGE)
    y = HEIGHT - EDGE - share[:, 1] * (HEIGHT - 2 * EDGE)  # pixels grow downwards
    return list(zip(x.tolist(), y.tolist(), strict=True))


def spread_out(positions: Sequence[Position], limit: int) -> list[int]:
    """The first positions, at most `limit`, at which pictures do not overlap."""
    chosen: list[int] = []
    for number, (x, y) in enumerate(positions):
        for other in chosen:
            other_x, other_y = positions[other]
            if max(abs(x - other_x), abs(y - other_y)) < MIN_GAP:
                break  # they would overlap
        else:
            chosen.append(number)
        if len(chosen) == limit:
            break
    return chosen
