"""Draws the pictures of this folder, writes their captions beside them, and packs both into
examples/pairs.tar, a WebDataset shard of eight pairs.

    python examples/pictures/draw.py

The drawings are part of clipx and have its license.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).parent
SIZE = 160
ZOOM = 4  # drawn larger and then reduced, which smooths the edges

Point = tuple[float, float]
Draw = Callable[["Pen"], None]


class Pen:
    """Filled shapes on a square whose sides run from 0 to 100."""

    def __init__(self, background: str) -> None:
        self.image = Image.new("RGB", (SIZE * ZOOM, SIZE * ZOOM), background)
        self._draw = ImageDraw.Draw(self.image)

    def _scaled(self, *values: float) -> list[float]:
        return [value * SIZE * ZOOM / 100 for value in values]

    def circle(self, x: float, y: float, radius: float, color: str) -> None:
        self.oval(x, y, radius, radius, color)

    def oval(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """width, height: from the center to the edge"""
        box = self._scaled(x - width, y - height, x + width, y + height)
        self._draw.ellipse(box, fill=color)

    def box(self, left: float, top: float, right: float, bottom: float, color: str) -> None:
        self._draw.rectangle(self._scaled(left, top, right, bottom), fill=color)

    def polygon(self, *points: Point, color: str) -> None:
        corners = [value for point in points for value in point]
        self._draw.polygon(self._scaled(*corners), fill=color)

    def line(self, *points: Point, width: float, color: str) -> None:
        corners = [value for point in points for value in point]
        (pixels,) = self._scaled(width)
        self._draw.line(self._scaled(*corners), fill=color, width=round(pixels), joint="curve")

    def finished(self) -> Image.Image:
        return self.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def cat(pen: Pen) -> None:
    for side in (-1, 1):
        x = 50 + side * 22
        ear = ((x - 14, 42), (x + side * 6, 12), (x + 14, 38))
        pen.polygon(*ear, color="#7d8791")
        inner = ((x - 7, 38), (x + side * 4, 20), (x + 7, 36))
        pen.polygon(*inner, color="#f2b8c0")
    pen.oval(50, 56, 36, 31, "#8f99a3")
    for side in (-1, 1):
        pen.oval(50 + side * 15, 50, 7, 8, "#c9e265")
        pen.oval(50 + side * 15, 50, 2.5, 7, "#22262a")
        for height in (62, 67, 72):
            start = (50 + side * 12, 65)
            end = (50 + side * 44, height + (height - 67) * 0.8)
            pen.line(start, end, width=0.9, color="#3c434a")
    pen.polygon((45, 60), (55, 60), (50, 66), color="#e07a8b")
    pen.line((42, 70), (46, 73), (50, 70), (54, 73), (58, 70), width=1.6, color="#3c434a")


def dog(pen: Pen) -> None:
    pen.box(24, 84, 76, 93, "#c62828")
    pen.circle(50, 94, 5, "#f5c542")
    pen.oval(50, 50, 30, 35, "#b57a45")
    for side in (-1, 1):
        pen.oval(50 + side * 31, 48, 11, 25, "#6f4422")
        pen.circle(50 + side * 12, 42, 6, "#ffffff")
        pen.circle(50 + side * 12, 43, 3.6, "#22262a")
    pen.oval(50, 66, 19, 15, "#e6c29c")
    pen.oval(50, 57, 7.5, 5.5, "#22262a")
    pen.line((50, 61), (50, 69), width=1.6, color="#22262a")
    pen.oval(50, 76, 5, 6, "#e8737f")


def car(color: str) -> Draw:
    def draw(pen: Pen) -> None:
        pen.box(0, 76, 100, 100, "#9aa1a6")
        pen.polygon((22, 53), (36, 30), (66, 30), (80, 53), color=color)
        pen.polygon((31, 49), (39, 34), (50, 34), (50, 49), color="#d7eefc")
        pen.polygon((54, 49), (54, 34), (64, 34), (73, 49), color="#d7eefc")
        pen.polygon((8, 52), (86, 49), (95, 58), (95, 72), (8, 72), color=color)
        pen.circle(92, 59, 3, "#fff3b0")
        for x in (27, 74):
            pen.circle(x, 73, 11, "#22262a")
            pen.circle(x, 73, 4.5, "#c8ced3")

    return draw


def tree(pen: Pen) -> None:
    pen.box(0, 84, 100, 100, "#8bc34a")
    pen.polygon((44, 50), (56, 50), (60, 90), (40, 90), color="#7a4a24")
    for x, y, radius in ((32, 46, 19), (68, 46, 19), (50, 28, 22), (50, 50, 20)):
        pen.circle(x, y, radius, "#2e8b3d")
    for x, y in ((38, 32), (58, 24), (66, 46), (34, 52), (52, 46)):
        pen.circle(x, y, 5, "#55ad55")


def house(pen: Pen) -> None:
    pen.box(0, 84, 100, 100, "#8bc34a")
    pen.box(66, 18, 75, 44, "#8d5a3b")
    pen.box(20, 46, 80, 88, "#f3e2bd")
    pen.polygon((12, 48), (50, 14), (88, 48), color="#c0392b")
    pen.box(43, 62, 57, 88, "#6f4422")
    pen.circle(54, 76, 1.6, "#f5c542")
    for left in (26, 62):
        pen.box(left, 56, left + 12, 69, "#bfe3f7")
        pen.box(left + 5.3, 56, left + 6.7, 69, "#ffffff")


def fish(pen: Pen) -> None:
    pen.polygon((66, 50), (92, 30), (88, 50), (92, 70), color="#d95f0e")
    pen.polygon((38, 34), (54, 18), (64, 38), color="#d95f0e")
    pen.oval(44, 50, 32, 20, "#f68b1f")
    for x in (42, 56):
        pen.oval(x, 50, 2.6, 17, "#ffffff")
    pen.circle(25, 45, 5, "#ffffff")
    pen.circle(24, 45, 2.6, "#22262a")
    pen.line((13, 56), (19, 58), width=1.6, color="#7a3403")
    for x, y, radius in ((12, 30, 3), (18, 20, 4), (10, 10, 5)):
        pen.circle(x, y, radius, "#d8f2fb")


def sun(pen: Pen) -> None:
    points: dict[str, list[Point]] = {
        "up": [(44, 24), (56, 24), (50, 4)],
        "down": [(44, 76), (56, 76), (50, 96)],
        "left": [(24, 44), (24, 56), (4, 50)],
        "right": [(76, 44), (76, 56), (96, 50)],
        "up left": [(27, 36), (36, 27), (17, 17)],
        "up right": [(73, 36), (64, 27), (83, 17)],
        "down left": [(27, 64), (36, 73), (17, 83)],
        "down right": [(73, 64), (64, 73), (83, 83)],
    }
    for ray in points.values():
        pen.polygon(*ray, color="#f9a825")
    pen.circle(50, 50, 24, "#fdd835")


PICTURES: dict[str, tuple[str, str, Draw]] = {
    "cat.png": ("a gray cat", "#fdf3e1", cat),
    "dog.jpg": ("a brown dog with a red collar", "#e3f1e4", dog),
    "red_car.png": ("a red car", "#eaf4fb", car("#d32f2f")),
    "blue_car.png": ("a blue car", "#eaf4fb", car("#1e66c8")),
    "tree.png": ("a tree with green leaves", "#dff1fb", tree),
    "house.png": ("a house with a red roof", "#dff1fb", house),
    "fish.png": ("an orange fish", "#8fd3ee", fish),
    "sun.png": ("a yellow sun", "#7cc4f2", sun),
}
"""File name -> caption, color of the background, and the function that draws it."""


def encoded(draw: Draw, background: str, file_name: str) -> bytes:
    """The bytes of the picture file."""
    pen = Pen(background)
    draw(pen)
    buffer = io.BytesIO()
    if file_name.endswith(".jpg"):
        pen.finished().save(buffer, "JPEG", quality=90)
    else:
        # A drawing of few colors: a palette halves the file, and nobody sees it.
        pen.finished().quantize(64).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    members: dict[str, bytes] = {}
    for file_name, (caption, background, draw) in PICTURES.items():
        members[file_name] = encoded(draw, background, file_name)
        members[f"{Path(file_name).stem}.txt"] = caption.encode()
    for name, content in members.items():
        (FOLDER / name).write_bytes(content)
    with tarfile.open(FOLDER.parent / "pairs.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)  # with time and owner 0, so that runs write equal files
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    main()
