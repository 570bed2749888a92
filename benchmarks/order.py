"""The order of the data at the scale of a large cluster, simulated: 1,024 ranks with 8 workers each
over 200,000 shards of 5,000 to 10,000 samples.

    python benchmarks/order.py [--check] [--ranks 1024] [--workers 8] [--shards 200000]

One rank is run as it would run there: a process that opens the catalog of the corpus from its cache
file, builds the order, starts at a random position, and has worker processes that locate their
batches. No shard exists; everything but reading is real. All ranks together are then checked to
draw each sample of a batch once. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from clipx.data import catalog
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.order import batch_positions, hash_of
from clipx.data.shard_cache import ShardCache
from clipx.data.sources.webdataset import Webdataset
from clipx.data.transfer.common import ShardFile

BARS = {"gib per rank": 1.0, "microseconds per sample": 20.0, "start-up seconds": 1.0}
LOCAL_BATCH = 32
BATCHES = 200


def write_catalog(num_shards: int) -> list[ShardFile]:
    """The cache file that a run's first start leaves behind."""
    samples = 5_000 + (hash_of(7, np.arange(num_shards)) % np.uint64(5_001)).astype(np.int64)
    files = [
        ShardFile(f"s3://corpus/{number:06d}.tar", count * 30_000, f"{number:032x}", "")
        for number, count in enumerate(samples.tolist())
    ]
    digests = np.array([f"{number:040x}".encode() for number in range(num_shards)])
    truncated = np.zeros(num_shards, dtype=np.bool_)
    known = catalog.Catalog(tuple(files), samples, digests, truncated)
    catalog.save(catalog.store_path(files), known, keep=np.ones(len(files), dtype=np.bool_))
    return files


def open_corpus(files: list[ShardFile], streams: int, seed: int) -> Corpus:
    cache = ShardCache(Path("/nowhere"), 1)
    sources = {"shards": Webdataset(catalog.open_catalog(files, cache), cache)}
    return DataConfig(shards="-", streams=streams).corpus(sources, seed=seed)


def proportional_bytes() -> int:
    """Memory of this process, shared pages divided by the number that share them."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss in /proc/self/smaps_rollup")


def work(corpus: Corpus, batches: range, rank: int, ranks: int, barrier: Any, out: Any) -> None:
    """One worker of a rank: locates its batches, then reports seconds, shards and memory."""
    seconds, shards = [], set()
    barrier.wait()
    for k in batches:
        began = time.perf_counter()
        positions = batch_positions(k, ranks * LOCAL_BATCH, rank=rank, world_size=ranks)
        found = corpus.locate(positions)
        seconds.append((time.perf_counter() - began) / LOCAL_BATCH)
        shards |= set(found.shard.tolist())
    barrier.wait()  # all are alive when their shared pages are divided
    out.put((seconds, len(shards), proportional_bytes()))
    barrier.wait()


def simulate_rank(
    files: list[ShardFile], ranks: int, workers: int, rank: int, seed: int
) -> dict[str, float]:
    began = time.perf_counter()
    corpus = open_corpus(files, ranks, seed)
    batches = 10 * corpus.num_samples // (ranks * LOCAL_BATCH)  # of ten epochs
    first = int(np.random.default_rng(seed).integers(batches))
    corpus.locate(batch_positions(first, ranks * LOCAL_BATCH, rank=rank, world_size=ranks))
    startup = time.perf_counter() - began
    context = multiprocessing.get_context("fork")
    barrier, out = context.Barrier(workers + 1), context.Queue()
    parts = [range(first + w, first + BATCHES * workers, workers) for w in range(workers)]
    processes = [
        context.Process(target=work, args=(corpus, part, rank, ranks, barrier, out))
        for part in parts
    ]
    for process in processes:
        process.start()
    barrier.wait()
    barrier.wait()
    reports = [out.get() for _ in processes]
    memory = proportional_bytes() + sum(report[2] for report in reports)
    barrier.wait()
    for process in processes:
        process.join()
    return {
        "start-up seconds": startup,
        "microseconds per sample": 1e6 * statistics.median(s for r in reports for s in r[0]),
        "gib per rank": memory / 2**30,
        "shards touched by a worker": statistics.median(report[1] for report in reports),
        "samples": float(corpus.num_samples),
    }


def check_union(files: list[ShardFile], ranks: int, seed: int) -> int:
    """Samples of one global batch, by all ranks on their own. Raises where one comes twice."""
    corpus = open_corpus(files, ranks, seed)
    k = 3 * corpus.num_samples // (ranks * LOCAL_BATCH) - 1
    drawn = set()
    for rank in range(ranks):
        positions = batch_positions(k, ranks * LOCAL_BATCH, rank=rank, world_size=ranks)
        found = corpus.locate(positions)
        drawn |= set(zip(found.shard.tolist(), found.sample.tolist(), strict=True))
    assert len(drawn) == ranks * LOCAL_BATCH, "a sample was drawn twice within an epoch"
    return len(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--shards", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5, help="ranks that are simulated")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        files = write_catalog(arguments.shards)
        rounds = [
            simulate_rank(files, arguments.ranks, arguments.workers, rank, seed=rank)
            for rank in np.linspace(0, arguments.ranks - 1, arguments.rounds).astype(int).tolist()
        ]
        union = check_union(files, arguments.ranks, seed=0)
    figures = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    report(figures, arguments, union)
    print(json.dumps(figures))
    missed = [name for name, most in BARS.items() if figures[name] >= most]
    if arguments.check and missed:
        sys.exit(f"missed: {missed}")


def report(figures: dict[str, float], arguments: argparse.Namespace, union: int) -> None:
    title = (
        f"order of {arguments.shards:,} shards, {figures['samples']:,.0f} samples, for one of "
        f"{arguments.ranks:,} ranks with {arguments.workers} workers, local batch {LOCAL_BATCH}"
    )
    table = Table("", "measured", "bar", title=title)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3f}", f"< {BARS[name]:g}" if name in BARS else "")
    table.add_row("different samples in a batch of all ranks", f"{union:,}", f"{union:,}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
