"""Draws docs/img/pools.png and prints the tables of docs/distributed.md.

    python docs/figures/pools.py [--ranks 1024 --rows 256 --width 768 --chunk 64]

needs matplotlib: pip install -e ".[viz]"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

RANKS, ROWS, ME = 4, 3, 1  # of the picture
NOW, LATER, OTHERS = "#d1495b", "#f4c9cf", "#eceff1"
PANELS = {
    "local": "own texts only;\nnothing travels",
    "gathered": "all texts at once;\ngathered once",
    "chunked": "some texts of each rank\nat a time (here 1 of 3)",
    "ring": "one rank's texts at a time,\nhanded on to the right",
}
Size = tuple[int, int, int, int]


def sent_numbers(loss: str, kind: str, width: int) -> int:
    """Numbers that travel for each row: times (R - 1) x B x 4 bytes is what a rank sends in a
    step."""
    if kind == "local":
        return 0
    if loss == "open_clip InfoNCE":
        return 4 * width
    if loss == "sigmoid":
        return 2 * width  # one visit: texts, and their gradients on the way back
    return {"gathered": 2 * width + 5, "chunked": 3 * width + 5, "ring": 3 * width + 3}[kind]


def held_floats(loss: str, kind: str, size: Size) -> int:
    """Numbers that a rank holds for the candidates, beside its own rows and a few tiles."""
    ranks, rows, width, chunk = size
    total = ranks * rows
    if loss == "open_clip InfoNCE":
        return 4 * total * width + 4 * rows * total
    return {
        "local": rows * width,
        "gathered": 2 * total * width,
        "chunked": 2 * ranks * chunk * width,
        "ring": 7 * rows * width,
    }[kind]


def gib(numbers: int) -> str:
    size = 4 * numbers
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


def table(size: Size) -> str:
    ranks, rows, width, _ = size
    lines = ["| loss | pool | sent by a rank | held for candidates |", "|---|---|---|---|"]
    settings = [(loss, kind) for loss in ("infonce", "sigmoid") for kind in PANELS]
    for loss, kind in [*settings, ("open_clip InfoNCE", "gathered")]:
        sent = sent_numbers(loss, kind, width) * (ranks - 1) * rows
        held = held_floats(loss, kind, size)
        lines.append(f"| {loss} | {kind} | {gib(sent) if sent else '0'} | {gib(held)} |")
    return "\n".join(lines)


def panel(axes: plt.Axes, kind: str) -> None:
    """The matrix of all images (rows) against all texts (columns); rank ME makes its strip."""
    size = RANKS * ROWS
    axes.add_patch(Rectangle((0, 0), size, size, color=OTHERS))
    for column in range(size):
        rank, place = divmod(column, ROWS)
        held = {
            "local": rank == ME,
            "gathered": True,
            "chunked": place == 1,
            "ring": rank == ME - 1,
        }[kind]
        if held or kind != "local":
            color = NOW if held else LATER
            axes.add_patch(Rectangle((column, ME * ROWS), 1, ROWS, color=color, lw=0))
            axes.add_patch(Rectangle((column, -1.6), 1, 0.9, color=color, lw=0))
    for k in range(RANKS + 1):
        axes.plot([k * ROWS] * 2, [0, size], color="white", lw=2)
        axes.plot([0, size], [k * ROWS] * 2, color="white", lw=2)
        axes.plot([k * ROWS] * 2, [-1.7, -0.6], color="white", lw=2)
    if kind == "ring":
        for k in range(RANKS):
            start, stop = ((k + 0.5) * ROWS, ((k + 1) % RANKS + 0.5) * ROWS)
            bend = -0.5 if k < RANKS - 1 else 0.3  # the last hands on to the first
            arrow = FancyArrowPatch(
                (start, -1.8),
                (stop, -1.8),
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>",
                mutation_scale=9,
                color="#455a64",
                lw=1,
            )
            axes.add_patch(arrow)
    axes.text(size / 2, -6.2, kind, ha="center", va="top", fontsize=12, fontweight="bold")
    axes.text(size / 2, size + 0.7, PANELS[kind], ha="center", va="top", fontsize=9)
    axes.set(xlim=(-2.2, size + 0.2), ylim=(size + 3, -6.4), aspect="equal")
    axes.axis("off")


def draw(path: Path) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 4.0))
    for ax, kind in zip(axes, PANELS, strict=True):
        panel(ax, kind)
    size = RANKS * ROWS
    for rank in range(RANKS):
        weight = "bold" if rank == ME else "normal"
        axes[0].text(-0.3, (rank + 0.5) * ROWS, f"images\nof rank {rank}", ha="right", va="center")
        axes[0].texts[-1].set(fontsize=7, fontweight=weight)
        axes[0].text((rank + 0.5) * ROWS, -2.0, f"{rank}", ha="center", va="bottom", fontsize=7)
    axes[0].text(size / 2, -3.2, "texts of rank", ha="center", va="bottom", fontsize=7)
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in (NOW, LATER, OTHERS)]
    labels = (
        f"texts that rank {ME} holds now, and the similarities it can make of them",
        "earlier or later in the step",
        "the other ranks' strips",
    )
    figure.legend(handles, labels, loc="lower center", ncol=3, frameon=False, fontsize=9)
    figure.subplots_adjust(left=0.03, right=0.99, top=0.99, bottom=0.08, wspace=0.08)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=256, help="B, on each rank")
    parser.add_argument("--width", type=int, default=768, help="D")
    parser.add_argument("--chunk", type=int, default=64, help="of the chunked pool")
    a = parser.parse_args()
    path = Path(__file__).parent.parent / "img" / "pools.png"
    path.parent.mkdir(exist_ok=True)
    draw(path)
    print(table((a.ranks, a.rows, a.width, a.chunk)))


if __name__ == "__main__":
    main()
