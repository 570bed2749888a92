"""`clipx data index`, `verify` and `bench`: what they print, and what they leave behind."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clipx import config as configs
from clipx.data.bench import bench
from clipx.data.caption_check import check_caption_fields
from clipx.data.catalog import Catalog, open_catalog
from clipx.data.config import DataConfig
from clipx.data.loader import Batches
from clipx.data.progress import note, printable, progress
from clipx.data.sample import BadSample
from clipx.data.sources import webdataset
from clipx.data.verify import verify
from clipx.training.config import TrainConfig
from clipx.training.corpus import pixel_batches
from clipx.types import UserError

_SHOWN = 20


def _print_table(table: Table) -> None:
    """Keys and names are shown as they are: `[/bold]` in them is no markup, `:x:` no emoji."""
    Console(markup=False, emoji=False, highlight=False).print(table)


def index(patterns: list[str], *, allow_pipe: bool) -> int:
    """Indexes shards and prints what is in them. Returns how many cannot be read."""
    source = webdataset.Config(patterns, allow_pipe=allow_pipe)
    files = source.files()
    with progress("indexing shards", len(files)) as advance:
        catalog = open_catalog(files, source.cache(), advance)
    _print_catalog(catalog)
    return sum(fault.is_whole_shard for fault in catalog.faults)


def _print_catalog(catalog: Catalog) -> None:
    sizes = [file.size for file in catalog.files if file.size >= 0]
    table = Table("shards", "samples", "bytes", "truncated", "unreadable")
    truncated = int(catalog.truncated.sum())
    numbers = (len(catalog.files), int(catalog.samples.sum()), sum(sizes), truncated)
    unreadable = sum(fault.is_whole_shard for fault in catalog.faults)
    table.add_row(*(f"{number:,}" for number in (*numbers, unreadable)))
    _print_table(table)
    for fault in catalog.faults[:_SHOWN]:
        print(printable(f"{fault.shard}: {fault.message}"))
    if catalog.faults[_SHOWN:]:
        print(f"... and {len(catalog.faults) - _SHOWN} more")


def verify_corpus(
    corpus: str, overrides: Sequence[str], *, out: Path | None, workers: int | None
) -> int:
    """Prints what is bad, and writes it to `out` line by line. Returns how many lines there are."""
    config = _data_config(corpus, overrides)
    opened = replace(config, max_bad_fraction=1.0).open(seed=0)  # bad shards are what we look for
    try:
        messages = check_caption_fields(opened)
    except UserError as error:  # one more fault to find: a run would not start
        messages = [str(error)]
    for message in messages:
        note(message)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    found: list[BadSample] = []
    try:
        file = out.open("w", encoding="utf-8") if out is not None else None
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error
    with progress("verifying samples", int(opened.sizes.sum())) as advance:
        for bad in verify(config, opened, workers=workers, advance=advance):
            found.append(bad)
            if file is not None:
                file.write(json.dumps(bad.record()) + "\n")
    if file is not None:
        file.close()
    _print_bad(found, int(opened.sizes.sum()), out)
    return len(found)


def _print_bad(found: list[BadSample], samples: int, out: Path | None) -> None:
    if not found:
        print(f"all {samples:,} samples are good")
        return
    counts = Counter((bad.stage, bad.error) for bad in found)
    first = {(bad.stage, bad.error): bad for bad in reversed(found)}
    table = Table("stage", "error", "count", "the first")
    for kind, count in counts.most_common():
        bad = first[kind]
        where = f"{bad.key or '(whole shard)'} of {bad.shard}: {bad.message}"
        table.add_row(*kind, f"{count:,}", printable(where))
    _print_table(table)
    told = f"{len(found):,} of {samples:,} samples and shards are bad"
    print(f"{told}; listed in {out}: train with data.skip={out}" if out else told)


def _data_config(corpus: str, overrides: Sequence[str]) -> DataConfig:
    """Of a run's YAML file, or of shards given as a pattern. Raises UserError."""
    if corpus.endswith((".yaml", ".yml")):
        return configs.load(TrainConfig, Path(corpus), overrides).data
    data: configs.Data = {"data": {"shards": corpus}}
    for override in overrides:
        data = configs.merge(data, configs.parse_override(override))
    if set(data) != {"data"}:
        wrong = next(key for key in data if key != "data")
        raise UserError(f"override {wrong}: without a config file, only data.* can be set")
    return configs.build(DataConfig, data["data"], where="the command line")


def bench_loader(path: Path, overrides: Sequence[str], *, seconds: float) -> None:
    """Prints samples per second of each stage of loading, and names the bottleneck."""
    config = configs.load(TrainConfig, path, overrides)
    corpus = config.data.open(seed=config.seed)
    batches = pixel_batches(config, corpus, config.model.read(), rank=0, world_size=1)
    note(f"{corpus.num_samples:,} samples, batches of {config.global_batch_size}, {seconds:.0f} s")
    _print_report(batches, seconds)


def _print_report(batches: Batches, seconds: float) -> None:
    report = bench(batches, seconds=seconds)
    total = sum(report.seconds.values())
    title = f"one core, {report.samples:,} samples to {batches.image_size} px"
    table = Table("stage", "us a sample", "samples/s", "share", title=title)
    for stage, each in report.seconds.items():
        table.add_row(stage, f"{each * 1e6:.1f}", f"{1 / each:,.0f}", f"{each / total:.0%}")
    table.add_row("all", f"{total * 1e6:.1f}", f"{1 / total:,.0f}", "100%")
    _print_table(table)
    rate, workers = report.samples_per_second, report.workers
    who = f"{workers} workers" if workers else "no workers (the training process itself)"
    print(f"the loader with {who}: {rate:,.0f} samples/s")
    print(f"bottleneck: {report.bottleneck}, {report.seconds[report.bottleneck] / total:.0%}")
    print(f"a worker with a core of its own adds about {1 / total:,.0f} samples/s")
