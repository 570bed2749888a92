"""Retrieval by the first coordinates of embeddings: what the `matryoshka` loss is for.

    clipx data demo --preset quick --out data/demo   # once
    python benchmarks/truncated.py runs/demo_matryoshka runs/demo_short --widths 24 48 96 192

Recall@1 and @10 of the held-out `emoji-fluent-retrieval`, text to image, with embeddings cut to
each width and brought to unit norm.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from held_out_emoji import COLUMNS, FOLDER, read_samples, recalls  # type: ignore[import]
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from clipx import embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="as `clipx eval` takes them")
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    parser.add_argument("--set", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    arguments = parser.parse_args()
    samples = read_samples(arguments.set)
    images = [sample["png"] for sample in samples]
    captions = [sample["txt"].decode() for sample in samples]
    table = Table("model", "width", *COLUMNS)
    figures: dict[str, float] = {}
    for name in arguments.models:
        encoder = embed.load(name)
        image = encoder.encode_image(images)
        text = encoder.encode_text(captions)
        for width in arguments.widths:
            similarity = (
                F.normalize(text[:, :width], dim=1) @ F.normalize(image[:, :width], dim=1).T
            )
            found, cells = recalls(similarity)
            figures |= {f"{name} {width} {metric}": value for metric, value in found.items()}
            table.add_row(name, str(width), *cells)
    table.title = f"{len(captions):,} pairs, text to image"
    Console(width=100).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
