"""The verbs of `clipx data`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


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
    demo.set_defaults(run=_data_demo)

    index = data.add_parser("index", help="index shards and say what is in them")
    index.add_argument("shards", nargs="+", help="folders, globs, {000..127} ranges or URLs")
    index.add_argument("--allow-pipe", action="store_true", help="run `pipe:` commands")
    index.set_defaults(run=_data_index)

    verify = data.add_parser("verify", help="find every sample that training could not use")
    verify.add_argument("corpus", help="shards, or the YAML file of a run")
    verify.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. data.caption_field=caption"
    )
    verify.add_argument("--out", type=Path, help="list for data.skip, one JSON object a line")
    verify.add_argument("--workers", type=int, help="processes (default: one per core)")
    verify.set_defaults(run=_data_verify)

    bench = data.add_parser("bench", help="samples/s of reading, decoding, augmenting ...")
    bench.add_argument("config", type=Path, help="YAML file of a run")
    bench.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.workers=8")
    bench.add_argument("--seconds", type=float, default=20.0, help="how long to measure")
    bench.set_defaults(run=_data_bench)


def _data_index(arguments: argparse.Namespace) -> None:
    from clipx.data_verbs import index

    if index(arguments.shards, allow_pipe=arguments.allow_pipe):
        sys.exit(1)


def _data_verify(arguments: argparse.Namespace) -> None:
    from clipx.data_verbs import verify_corpus

    workers, out = arguments.workers, arguments.out
    if verify_corpus(arguments.corpus, arguments.overrides, out=out, workers=workers):
        sys.exit(1)


def _data_bench(arguments: argparse.Namespace) -> None:
    from clipx.data_verbs import bench_loader

    bench_loader(arguments.config, arguments.overrides, seconds=arguments.seconds)


def _data_demo(arguments: argparse.Namespace) -> None:
    from clipx.demo.corpus import build

    build(arguments.preset, arguments.out, workers=arguments.workers)
