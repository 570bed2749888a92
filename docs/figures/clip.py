"""Draws docs/img/clip.png: two towers, the matrix of cosines, the diagonal and the temperature.

    python docs/figures/clip.py

The pictures are those of examples/pictures.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

ROOT = Path(__file__).parents[2]
PAIRS = {
    "cat.png": "a gray\ncat",
    "red_car.png": "a red\ncar",
    "blue_car.png": "a blue\ncar",
    "fish.png": "an orange\nfish",
}
IMAGE, TEXT, PAIR, OTHER, INK = "#1f6f8b", "#b5651d", "#2e7d32", "#eef1f3", "#263238"
ROW, COLUMN = "#6a1b9a", "#c2185b"  # the two softmaxes
SHADES = ((0.9, 0.35, 0.6, 0.2), (0.25, 0.8, 0.4, 0.7), (0.3, 0.75, 0.9, 0.5), (0.6, 0.2, 0.3, 0.9))
CENTER = {"ha": "center", "va": "center"}
CELL = 12.0
LEFT, TOP = 52.0, 58.0  # of the matrix
BOTTOM = TOP - len(PAIRS) * CELL
RIGHT = LEFT + len(PAIRS) * CELL


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def box(
    axes: plt.Axes, left: float, bottom: float, width: float, height: float, color: str
) -> None:
    shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=1.4")
    shape.set(facecolor=color, edgecolor="none")
    axes.add_patch(shape)


def vector(axes: plt.Axes, x: float, y: float, number: int, color: str, *, upright: bool) -> None:
    """Four squares for the D numbers of an embedding, from the corner (x, y)."""
    for place, shade in enumerate(SHADES[number]):
        shift = (3 - place if upright else place) * 2.0  # from the top, or from the left
        corner = (x, y + shift) if upright else (x + shift, y)
        axes.add_patch(Rectangle(corner, 1.8, 1.8, color=color, alpha=shade, lw=0))


def draw_images(axes: plt.Axes) -> None:
    box(axes, 17, BOTTOM, 14, TOP - BOTTOM, IMAGE)
    middle = (TOP + BOTTOM) / 2
    axes.text(24, middle, "image tower", rotation=90, size=15, color="white", **CENTER)
    for number, file_name in enumerate(PAIRS):
        y = TOP - (number + 0.5) * CELL
        picture = Image.open(ROOT / "examples/pictures" / file_name).convert("RGB")
        axes.imshow(picture, extent=(2, 12, y - 5, y + 5), interpolation="lanczos", zorder=2)
        arrow(axes, (12.6, y), (16.6, y), IMAGE)
        arrow(axes, (31.4, y), (35.4, y), IMAGE)
        vector(axes, 36.4, y - 0.9, number, IMAGE, upright=False)
        axes.text(47.8, y, f"$i_{number + 1}$", size=14, color=IMAGE, **CENTER)


def draw_captions(axes: plt.Axes) -> None:
    box(axes, LEFT, 76, RIGHT - LEFT, 8, TEXT)
    axes.text((LEFT + RIGHT) / 2, 80, "text tower", size=15, color="white", **CENTER)
    for number, caption in enumerate(PAIRS.values()):
        x = LEFT + (number + 0.5) * CELL
        axes.text(x, 91, caption, size=10.5, color=INK, **CENTER)
        arrow(axes, (x, 88), (x, 84.4), TEXT)
        arrow(axes, (x, 75.6), (x, 72.4), TEXT)
        vector(axes, x - 0.9, 64, number, TEXT, upright=True)
        axes.text(x, 61, f"$t_{number + 1}$", size=14, color=TEXT, **CENTER)


def draw_matrix(axes: plt.Axes) -> None:
    for row in range(len(PAIRS)):
        for column in range(len(PAIRS)):
            corner = (LEFT + column * CELL, TOP - (row + 1) * CELL)
            is_pair = row == column
            cell = Rectangle(corner, CELL, CELL, facecolor=PAIR if is_pair else OTHER)
            cell.set(edgecolor="white", linewidth=2.5)
            axes.add_patch(cell)
            label = f"$i_{row + 1}\\!\\cdot t_{column + 1}$"
            color = "white" if is_pair else INK
            axes.text(
                corner[0] + CELL / 2, corner[1] + CELL / 2, label, size=13, color=color, **CENTER
            )


def draw_loss(axes: plt.Axes) -> None:
    row = Rectangle((LEFT + 0.5, TOP - 2 * CELL + 0.5), RIGHT - LEFT - 1, CELL - 1)
    column = Rectangle((LEFT + 2 * CELL + 0.5, BOTTOM + 0.5), CELL - 1, TOP - BOTTOM - 1)
    for outline, color in ((row, ROW), (column, COLUMN)):
        outline.set(facecolor="none", edgecolor=color, linewidth=2.2)
        axes.add_patch(outline)
    y = TOP - 1.5 * CELL
    arrow(axes, (RIGHT + 0.6, y), (RIGHT + 5, y), ROW)
    question = "softmax over the row:\nwhich caption belongs\nto this picture?"
    axes.text(RIGHT + 6.5, y, question, size=11, color=ROW, va="center", ha="left")
    x = LEFT + 2.5 * CELL
    arrow(axes, (x, BOTTOM - 0.6), (x, BOTTOM - 4.5), COLUMN)
    question = "softmax over the column:\nwhich picture belongs to this caption?"
    axes.text(x, BOTTOM - 8.6, question, size=11, color=COLUMN, **CENTER)

    loss = "The loss is −log softmax\nat the diagonal, averaged\nover all rows and columns."
    axes.text(RIGHT + 6.5, BOTTOM + 4, loss, size=11, color=PAIR, va="center", ha="left")
    scale = "Each cosine is multiplied\nby one learned number,\n1 / temperature."
    axes.text(RIGHT + 6.5, TOP - 6, scale, size=11, color=INK, va="center", ha="left")
    axes.text(2, 86, "A batch of N = 4 pairs", size=15, color=INK, va="center", ha="left")
    cosine = (
        "Both towers return D numbers of unit norm,\nso that $i \\cdot t$ is the cosine of the two."
    )
    axes.text(2, 78.5, cosine, size=11, color=INK, va="center", ha="left")


def main() -> None:
    figure, axes = plt.subplots(figsize=(11.2, 8.1))
    draw_images(axes)
    draw_captions(axes)
    draw_matrix(axes)
    draw_loss(axes)
    axes.set(xlim=(0, 134), ylim=(-1, 95), aspect="equal")
    axes.axis("off")
    figure.subplots_adjust(left=0, right=1, top=1, bottom=0)
    figure.savefig(ROOT / "docs/img/clip.png", dpi=100)


if __name__ == "__main__":
    main()
