"""How well texts find texts of the same drawing: the tags of an emoji by another name of it.

    clipx data demo --preset quick --out data/demo   # once
    python benchmarks/text_pairs.py runs/demo_siamese runs/demo_short

For each drawing of `emoji-fluent-retrieval`, which no run of the demo trains on, the query is the
last of its captions and the answer its tags without the name. Prints recall@1 and recall@10 of each
model with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from held_out_emoji import COLUMNS, FOLDER, read_samples, recalls  # type: ignore[import]
from rich.console import Console
from rich.table import Table

from clipx import embed


def read_pairs(folder: Path) -> tuple[list[str], list[str]]:
    """(queries, answers) of the drawings that have tags."""
    queries = []
    answers = []
    for sample in read_samples(folder):
        name, _, tags = sample["txt"].decode().partition(", ")
        other = json.loads(sample["json"])["captions"][-1]
        if tags and other != name:
            queries.append(other)
            answers.append(tags)
    return queries, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="as `clipx eval` takes them")
    parser.add_argument("--set", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    arguments = parser.parse_args()
    queries, answers = read_pairs(arguments.set)
    table = Table("model", *COLUMNS)
    figures: dict[str, float] = {}
    for name in arguments.models:
        encoder = embed.load(name)
        similarity = encoder.encode_text(queries) @ encoder.encode_text(answers).T
        found, cells = recalls(similarity)
        figures |= {f"{name} {metric}": value for metric, value in found.items()}
        table.add_row(name, *cells)
    table.title = f"{len(queries):,} pairs; rows in random order: {1 / len(queries):.2%}"
    Console(width=100).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
