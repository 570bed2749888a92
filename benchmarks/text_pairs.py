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
import tarfile
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from clipx import embed, metrics


def read_pairs(folder: Path) -> tuple[list[str], list[str]]:
    """(queries, answers) of the drawings that have tags."""
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                file = tar.extractfile(member)
                if kind in ("txt", "json") and file is not None:
                    samples[key][kind] = file.read().decode()
    queries = []
    answers = []
    for sample in samples.values():
        name, _, tags = sample["txt"].partition(", ")
        other = json.loads(sample["json"])["captions"][-1]
        if tags and other != name:
            queries.append(other)
            answers.append(tags)
    return queries, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="as `clipx eval` takes them")
    default = Path("data/demo/eval/emoji-fluent-retrieval/test")
    parser.add_argument("--set", type=Path, default=default, help=f"default: {default}")
    arguments = parser.parse_args()
    queries, answers = read_pairs(arguments.set)
    table = Table("model", "recall@1", "95 %", "recall@10", "95 %")
    figures: dict[str, float] = {}
    for name in arguments.models:
        encoder = embed.load(name)
        similarity = encoder.encode_text(queries) @ encoder.encode_text(answers).T
        own = similarity.diagonal()[:, None]
        # A tie counts against the answer.
        rank = (similarity >= own).sum(1) - 1
        cells = []
        for k in (1, 10):
            hits = (rank < k).double()
            figures[f"{name} recall@{k}"] = round(hits.mean().item(), 4)
            low, high = metrics.rate_interval(hits) or (float("nan"), float("nan"))
            cells += [f"{hits.mean():.1%}", f"{low:.1%} to {high:.1%}"]
        table.add_row(name, *cells)
    table.title = f"{len(queries):,} pairs; rows in random order: {1 / len(queries):.2%}"
    Console(width=100).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
