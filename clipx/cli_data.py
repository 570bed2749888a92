"""The verbs of `clipx data`. Each imports what it needs, so that `clipx --help` is quick."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from clipx.cores import usable_cores
from clipx.types import PrecisionKind, UserError

if TYPE_CHECKING:
    from clipx.data.sample import BadSample

_MAX_SHOWN = 20


def add_verbs(verbs: Any) -> None:
    data = verbs.add_parser("data", help="corpora").add_subparsers(required=True, metavar="WHAT")
    demo = data.add_parser(
        "demo", help="build a real corpus and its test sets from npm packages of open drawings"
    )
    demo.add_argument(
        "--preset",
        choices=("quick", "full"),
        default="quick",
        help="55 thousand or 190 thousand pairs",
    )
    demo.add_argument("--out", type=Path, default=Path("data/demo"))
    demo.add_argument(
        "--workers", type=int, default=None, help="rendering processes (default: one per core)"
    )
    demo.set_defaults(run=_demo)

    index = data.add_parser("index", help="index shards and print their samples and faults")
    index.add_argument("shards", nargs="+", help="folders, globs, {000..127} ranges or URLs")
    index.add_argument("--allow-pipe", action="store_true", help="run `pipe:` commands")
    index.set_defaults(run=_index)

    verify = data.add_parser("verify", help="find every sample that training could not use")
    verify.add_argument("corpus", help="shards, or the YAML file of a run")
    verify.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. data.caption_field=caption"
    )
    verify.add_argument("--out", type=Path, help="list for data.skip, one JSON object a line")
    verify.add_argument("--workers", type=int, help="processes (default: one per core)")
    verify.set_defaults(run=_verify)

    bench = data.add_parser("bench", help="samples/s of reading, decoding, augmenting ...")
    bench.add_argument("config", type=Path, help="YAML file of a run")
    bench.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.workers=8")
    bench.add_argument("--seconds", type=float, default=20.0, help="how long to measure")
    bench.set_defaults(run=_bench)

    reinforce = data.add_parser("reinforce", help="store a teacher's embeddings for distillation")
    reinforce.add_argument("corpus", help="shards, or the YAML file of a run")
    reinforce.add_argument("model", metavar="MODEL", help="the teacher, as `clipx eval` takes it")
    reinforce.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.flip=0.5")
    text = "folder for data.reinforced; the same command completes it"
    reinforce.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)
    reinforce.add_argument("--views", type=int, default=4, help="of each image (default: 4)")
    kinds = get_args(PrecisionKind)
    reinforce.add_argument("--precision", choices=kinds, default="auto", help="of the towers")
    reinforce.set_defaults(run=_reinforce)


def _demo(arguments: argparse.Namespace) -> None:
    from clipx.demo.corpus import build

    build(arguments.preset, arguments.out, workers=arguments.workers)


def _index(arguments: argparse.Namespace) -> None:
    """Index shards and print their totals and faults. Exit with 1 if some are unreadable."""
    from clipx.data.catalog import open_catalog
    from clipx.data.sources import webdataset
    from clipx.progress import printable, progress

    source = webdataset.Config(arguments.shards, allow_pipe=arguments.allow_pipe)
    files = source.files()
    # Indexes are kept in the cache folder, where training finds them.
    with progress("indexing shards", len(files)) as advance:
        catalog = open_catalog(files, source.cache(), advance)
    totals = {
        "shards": len(catalog.files),
        "samples": int(catalog.samples.sum()),
        "bytes": sum(max(0, file.size) for file in catalog.files),  # -1 where it is not known
        "truncated": int(catalog.truncated.sum()),
        "unreadable": sum(fault.is_whole_shard for fault in catalog.faults),
    }
    print_table(list(totals), [[f"{number:,}" for number in totals.values()]])
    # A missing disk makes all shards faulty, and the first of them show it.
    for fault in catalog.faults[:_MAX_SHOWN]:
        print(printable(f"{fault.shard}: {fault.message}"))
    if catalog.faults[_MAX_SHOWN:]:
        print(f"... and {len(catalog.faults) - _MAX_SHOWN} more")
    if totals["unreadable"]:
        sys.exit(1)


def _verify(arguments: argparse.Namespace) -> None:
    """Print the bad samples and shards, and write one line for each to --out. Exit with 1 if there
    are some."""
    from dataclasses import replace

    from clipx.training.run_config import load_data_config

    out = arguments.out
    config = load_data_config(arguments.corpus, arguments.overrides)

    from clipx.data.captions import check_caption_fields
    from clipx.data.labels import check_contents
    from clipx.data.verify import verify
    from clipx.progress import note, progress

    # Bad shards are listed, not fatal, and held-out samples are verified too.
    opened = replace(config, max_bad_fraction=1.0).open(seed=0, part="all")
    try:
        messages = [*check_caption_fields(opened), *check_contents(opened)]
    except UserError as error:  # would stop a run; here, one more fault to report
        messages = [str(error)]
    for message in messages:
        note(message)
    workers = arguments.workers
    if workers is None:
        workers = usable_cores()
    num_samples = int(opened.sizes.sum())
    bad: list[BadSample] = []
    try:
        file = (out or Path(os.devnull)).open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error
    with file, progress("verifying samples", num_samples) as advance:
        for sample in verify(config, opened, workers=workers, advance=advance):
            bad.append(sample)
            file.write(json.dumps(sample.record()) + "\n")  # an interrupted check leaves a list
    _print_bad(bad, num_samples, out)
    if bad:
        sys.exit(1)


def _print_bad(bad: list[BadSample], num_samples: int, out: Path | None) -> None:
    from clipx.progress import printable

    if not bad:
        print(f"all {num_samples:,} samples are good")
        return
    kinds: dict[tuple[str, str], list[BadSample]] = {}
    for sample in bad:
        kinds.setdefault((sample.stage, sample.error), []).append(sample)
    rows = []
    for samples in sorted(kinds.values(), key=len, reverse=True):
        first = samples[0]  # of many alike, one shows what to mend
        where = f"{first.key or '(whole shard)'} of {first.shard}: {first.message}"
        rows.append([first.stage, first.error, f"{len(samples):,}", printable(where)])
    print_table(["stage", "error", "count", "the first"], rows)
    summary = f"{len(bad):,} of {num_samples:,} samples and shards are bad"
    if out is not None:
        summary += f"; listed in {out}: train with data.skip={out}"
    print(summary)


def _bench(arguments: argparse.Namespace) -> None:
    """Print samples per second of each stage of loading, and name the slowest."""
    from clipx.training.run_config import load_config

    config = load_config(arguments.config, arguments.overrides)

    from clipx.data.bench import bench
    from clipx.progress import note
    from clipx.training.corpus import check_groups, concepts_of, corpus_of, pixel_batches

    sources = config.data.open_sources()
    check_groups(config)
    corpus = corpus_of(config, sources, concepts_of(config, corpus_of(config, sources)))
    batches = pixel_batches(config, corpus, config.model.read(), rank=0, world_size=1)
    size = config.global_batch_size
    note(f"{corpus.num_samples:,} samples, batches of {size}, {arguments.seconds:.0f} s")
    report = bench(batches, seconds=arguments.seconds)
    total = sum(report.seconds.values())  # for a sample, in one process without a loader
    rows = []
    for stage, seconds in [*report.seconds.items(), ("all", total)]:
        rate = f"{1 / seconds:,.0f}"
        rows.append([stage, f"{seconds * 1e6:.1f}", rate, f"{seconds / total:.0%}"])
    title = f"one core, {report.samples:,} samples to {batches.image_size} px"
    print_table(["stage", "us a sample", "samples/s", "share"], rows, title=title)
    workers = "no workers (the training process itself)"  # data.workers=0
    if report.workers:
        workers = f"{report.workers} workers"
    print(f"the loader with {workers}: {report.samples_per_second:,.0f} samples/s")
    print(f"bottleneck: {report.bottleneck}, {report.seconds[report.bottleneck] / total:.0%}")
    print(f"a worker with a core of its own adds about {1 / total:,.0f} samples/s")


def _reinforce(arguments: argparse.Namespace) -> None:
    """Write a teacher's embeddings, and print their number."""
    from clipx.training.run_config import load_data_config

    if arguments.views < 1:
        raise UserError(f"--views {arguments.views} is below 1")
    data = load_data_config(arguments.corpus, arguments.overrides)

    from clipx.distributed.runtime import start
    from clipx.training.reinforce import reinforce

    # Ranks wait for the slowest, whose shards may take hours longer than those of the others.
    runtime = start("auto", timeout_minutes=7 * 24 * 60)
    manifest = reinforce(
        data,
        arguments.model,
        arguments.out,
        runtime,
        num_views=arguments.views,
        precision=arguments.precision,
    )
    if runtime.is_main:
        num_bad = sum(map(len, manifest.bad.values()))
        print(f"{arguments.out}: {manifest.num_views} views of each image, by {arguments.model}")
        print(f"{num_bad:,} samples could not be read; training replaces them")
        print(f"train with objective.teacher=stored data.reinforced={arguments.out}")
    runtime.close()


def print_table(header: list[str], rows: list[list[str]], title: str | None = None) -> None:
    from rich.table import Table

    from clipx.progress import make_console

    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    # Names of files and keys may contain `[/bold]` or `:x:`, which are no markup and no emoji.
    make_console(markup=False, emoji=False, highlight=False).print(table)
