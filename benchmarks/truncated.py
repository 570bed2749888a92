"""Retrieval by the first coordinates of embeddings: what the `matryoshka` loss is for.

    clipx data demo --preset quick --out data/demo   # once
    python benchmarks/truncated.py runs/demo_matryoshka runs/demo_short --widths 24 48 96 192

Recall@1 and @10 of the held-out `emoji-fluent-retrieval`, text to image, with embeddings cut to
each width and brought to unit norm.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from clipx import embed, metrics


def read_pairs(folder: Path) -> tuple[list[bytes], list[str]]:
    """(images as files, captions), in the same order."""
    images = {}
    captions = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                file = tar.extractfile(member)
                if kind == "png" and file is not None:
                    images[key] = file.read()
                elif kind == "txt" and file is not None:
                    captions[key] = file.read().decode()
    return [images[key] for key in captions], list(captions.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="as `clipx eval` takes them")
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    default = Path("data/demo/eval/emoji-fluent-retrieval/test")
    parser.add_argument("--set", type=Path, default=default, help=f"default: {default}")
    arguments = parser.parse_args()
    images, captions = read_pairs(arguments.set)
    table = Table("model", "width", "recall@1", "95 %", "recall@10", "95 %")
    figures: dict[str, float] = {}
    for name in arguments.models:
        encoder = embed.load(name)
        image = encoder.encode_image(images)
        text = encoder.encode_text(captions)
        for width in arguments.widths:
            similarity = (
                F.normalize(text[:, :width], dim=1) @ F.normalize(image[:, :width], dim=1).T
            )
            # A tie counts against the image.
            rank = (similarity >= similarity.diagonal()[:, None]).sum(1) - 1
            cells = []
            for k in (1, 10):
                hits = (rank < k).double()
                figures[f"{name} {width} recall@{k}"] = round(hits.mean().item(), 4)
                low, high = metrics.rate_interval(hits) or (float("nan"), float("nan"))
                cells += [f"{hits.mean():.1%}", f"{low:.1%} to {high:.1%}"]
            table.add_row(name, str(width), *cells)
    table.title = f"{len(captions):,} pairs, text to image"
    Console(width=100).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
