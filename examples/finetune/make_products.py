"""Make what a company would bring: a folder of pictures and a CSV file that lists them.

    python examples/finetune/make_products.py data/products

The "products" are Microsoft's Fluent emoji (MIT license), in two styles each, whose drawings the
demo's model has never seen. They are drawn from the npm packages of the demo corpus, on your
machine. The CSV has semicolons, as spreadsheets of half of Europe write it:

    picture;title;category;product_id
    pictures/00017-flat.png;red apple, flat;food & drink;17
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipx.cores import usable_cores
from clipx.demo.drawings import Drawing, load_set
from clipx.demo.emoji import emoji_drawings
from clipx.demo.packages import ensure_packages
from clipx.demo.render import renderer

STYLES = {"fluent-emoji-flat": "flat", "fluent-emoji-high-contrast": "outline"}
COLUMNS = ("picture", "title", "category", "product_id")
TONED = re.compile("-(light|medium|dark)")  # variants of skin tone share their name
PIXELS = 96


def make(out: Path, npm: Path, *, workers: int, limit: int | None = None) -> int:
    """Write the pictures and products.csv. Returns the number of pictures.

    npm: folder with the packages, which are installed where they are missing
    limit: products at most
    """
    modules = ensure_packages(npm)
    category_of = categories(load_set(modules, "fluent-emoji-flat"))
    drawings = []
    names = []  # of the product of each drawing
    for prefix in STYLES:
        for drawing in emoji_drawings(modules, [prefix]):
            name = drawing.key.removeprefix(f"{prefix}_")
            is_toned = "skin tone" in drawing.label or TONED.search(name)
            if name in category_of and not is_toned:
                drawings.append(drawing)
                names.append(name)
    numbers = {name: number for number, name in enumerate(sorted(set(names))[:limit])}

    (out / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    with renderer(PIXELS, workers) as render:
        for drawing, name, png in zip(drawings, names, render(drawings), strict=True):
            if png is None or name not in numbers:
                continue
            row = row_of(drawing, numbers[name], category_of[name])
            (out / row[0]).write_bytes(png)
            rows.append(row)
    rows.sort()
    with (out / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return len(rows)


def categories(icon_set: Mapping[str, Any]) -> dict[str, str]:
    """Name of an emoji -> its group, such as `food & drink`."""
    found = {}
    for category, names in icon_set["categories"].items():
        for name in names:
            found[name] = category.lower()
    return found


def row_of(drawing: Drawing, number: int, category: str) -> tuple[str, str, str, str]:
    """A line of the CSV file."""
    style = STYLES[drawing.source]
    picture = f"pictures/{number:05d}-{style}.png"
    return picture, f"{drawing.label}, {style}", category, str(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder, such as data/products")
    text = "folder with the npm packages of the demo corpus (default: data/demo/npm)"
    parser.add_argument("--npm", type=Path, default=Path("data/demo/npm"), help=text)
    arguments = parser.parse_args()
    workers = usable_cores()
    count = make(arguments.out, arguments.npm, workers=workers)
    print(f"{arguments.out}/products.csv: {count:,} pictures", file=sys.stderr)


if __name__ == "__main__":
    main()
