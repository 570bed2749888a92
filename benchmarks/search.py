"""Exact search and the indices of `clipx index` on clustered vectors: build time, memory, recall@10
and time of a query.

    python benchmarks/search.py [--check] [--vectors 1000000] [--width 512]

Vectors are unit rows around centers, as embeddings of concepts are; queries are others around the
same centers. Milliseconds are medians of one query at a time, and of 32 that come at once, for each
of them. FAISS flat is the yardstick of exact search. `--check` exits 1 when the index that
`--recall 0.95` chooses finds less on queries that it has not seen. Run nothing beside it; with the
defaults it takes an hour on 2 cores, most of it for HNSW, and 10 GiB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import faiss
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from clipx.search.build_index import build_index
from clipx.search.exact import nearest_rows
from clipx.search.vector_index import EFFORTS, Spec, VectorIndex

NUM_CENTERS = 20_000
NOISE = 0.6  # cosines of vectors of one center are about 0.73, as of captions of one picture
NUM_QUERIES = 200
TOGETHER = 32
RECALL = 0.95


def clustered(count: int, width: int, seed: int) -> np.ndarray:
    """(count, width) float32 unit rows."""
    rows = np.empty((count, width), dtype=np.float32)
    centers = torch.randn(NUM_CENTERS, width, generator=torch.Generator().manual_seed(0))
    centers = F.normalize(centers, dim=1)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, count, 50_000):  # all at once would take twice the memory
        size = min(50_000, count - first)
        label = torch.randint(0, NUM_CENTERS, (size,), generator=generator)
        noise = torch.randn(size, width, generator=generator) * NOISE / width**0.5
        rows[first : first + size] = F.normalize(centers[label] + noise, dim=1).numpy()
    return rows


def milliseconds(search: Any, queries: Tensor) -> tuple[float, float]:
    """(one by one, 32 at once) for each query, medians."""
    alone = []
    for query in queries[:100]:
        start = time.perf_counter()
        search(query[None])
        alone.append(time.perf_counter() - start)
    together = []
    for part in queries.split(TOGETHER):
        if len(part) == TOGETHER:
            start = time.perf_counter()
            search(part)
            together.append((time.perf_counter() - start) / TOGETHER)
    return 1000 * statistics.median(alone), 1000 * statistics.median(together)


def recall_of(found: Tensor, exact: Tensor) -> float:
    return (exact[:, :, None] == found[:, None, :]).any(2).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 when the bar is missed")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    rows = clustered(arguments.vectors, arguments.width, seed=1)
    queries = torch.from_numpy(clustered(NUM_QUERIES, arguments.width, seed=2))
    exact = nearest_rows(queries, rows, 10)[1]
    table = Table("index", "effort", "build s", "MiB", "recall@10", "ms alone", "ms of 32")
    figures: dict[str, Any] = {}

    def add(name: str, effort: int, build: float, size: int, recall: float, search: Any) -> None:
        alone, together = milliseconds(search, queries)
        values = (f"{build:.0f}", f"{size / 2**20:,.0f}", f"{recall:.3f}")
        table.add_row(name, str(effort or "-"), *values, f"{alone:.2f}", f"{together:.2f}")
        figures[f"{name} {effort} recall"] = round(recall, 4)
        figures[f"{name} {effort} ms"] = round(alone, 3)
        figures[f"{name} {effort} ms of 32"] = round(together, 3)
        figures[f"{name} build s"] = round(build, 1)
        figures[f"{name} MiB"] = round(size / 2**20)

    flat = faiss.IndexFlatIP(arguments.width)
    start = time.perf_counter()
    flat.add(rows)
    took = time.perf_counter() - start
    found = torch.from_numpy(flat.search(queries.numpy(), 10)[1])
    recall = recall_of(found, exact)
    add("FAISS flat", 0, took, rows.nbytes, recall, lambda q: flat.search(q.numpy(), 10))
    flat.reset()  # its memory is needed for the next
    whole = VectorIndex(Spec("exact"), rows)
    add("clipx exact", 0, 0.0, rows.nbytes, 1.0, lambda q: whole.search(q, 10))

    def measure(built: VectorIndex, seconds: float) -> None:
        for effort in EFFORTS[built.spec.kind]:
            index = built.with_effort(effort)
            recall = recall_of(index.search(queries, 10)[1], exact)
            size = index.num_bytes()
            add(built.spec.kind, effort, seconds, size, recall, lambda q, i=index: i.search(q, 10))

    choice = clustered(4000, arguments.width, seed=3)
    chosen = build_index(rows, choice, recall=RECALL, on_built=measure)
    unseen = recall_of(chosen.index.search(queries, 10)[1], exact)
    spec = chosen.index.spec
    figures["chosen"] = f"{spec.kind} {spec.effort}"
    figures["chosen recall on other queries"] = round(unseen, 4)
    figures["chosen recall as stated"] = round(chosen.measured.recall, 4)
    table.title = f"{len(rows):,} x {arguments.width}, {torch.get_num_threads()} threads"
    console = Console(width=110)
    console.print(table)
    console.print(
        f"--recall {RECALL} chooses {spec.kind} {spec.effort}: {chosen.measured.recall:.3f} as "
        f"stated, {unseen:.3f} on {NUM_QUERIES} other queries"
    )
    print(json.dumps(figures))
    if arguments.check and unseen < RECALL:
        sys.exit(f"missed: recall {unseen:.3f} on queries that it has not seen")


if __name__ == "__main__":
    main()
