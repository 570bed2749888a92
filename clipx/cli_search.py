"""The verb `clipx embed`. It imports what it needs, so that `clipx --help` is quick."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx import cli_data
from clipx.types import UserError

if TYPE_CHECKING:
    from clipx.data.config import DataConfig

TABLES = (".csv", ".tsv", ".parquet")


def add_verbs(verbs: Any) -> None:
    embed = verbs.add_parser("embed", help="embeddings of a corpus, in clip-retrieval's layout")
    embed.add_argument("model", metavar="MODEL", help="as for `clipx eval`")
    text = "shards, a folder of pictures, a table, or the YAML file of a run"
    embed.add_argument("source", metavar="SOURCE", help=text)
    embed.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. data.caption_field=caption"
    )
    embed.add_argument("--out", type=Path, required=True, metavar="DIR", help="new, or to complete")
    embed.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    text = "samples in a file at most (default: 10,000)"
    embed.add_argument("--part-size", type=int, default=10_000, help=text)
    text = "of the towers (default: auto)"
    precisions = ["auto", "bf16", "fp16", "tf32", "fp32"]
    embed.add_argument("--precision", choices=precisions, default="auto", help=text)
    text = "this is task I of N, from 1, as in a SLURM array; torchrun needs no such option"
    embed.add_argument("--task", metavar="I/N", help=text)
    embed.set_defaults(run=_embed)


def _embed(arguments: argparse.Namespace) -> None:
    """Embed on all ranks that the launcher has started."""
    from clipx import embed
    from clipx.distributed.runtime import start
    from clipx.progress import progress, silent
    from clipx.search.embed_corpus import EmbedCorpus
    from clipx.training.precision import build_precision

    if arguments.part_size < 1:
        raise UserError(f"--part-size {arguments.part_size} is below 1")
    out = arguments.out
    config = source_config(arguments.source, arguments.overrides)
    # Ranks wait for the slowest, whose parts may take hours longer than those of the others.
    runtime = start("auto", timeout_minutes=7 * 24 * 60)
    share = _share(arguments.task, runtime.rank, runtime.world_size)
    sources = runtime.on_main(config.open_sources) or {}
    corpus = config.corpus(runtime.from_main(sources), seed=0, needs_captions=False)
    dtype = build_precision(arguments.precision, runtime.device).dtype
    encoder = runtime.main_first(
        lambda: embed.load(arguments.model, device=runtime.device, dtype=dtype)
    )
    build = EmbedCorpus(
        out, corpus, config, encoder, part_size=arguments.part_size, dtype=arguments.dtype
    )
    what = f"embeddings are written to {out}"
    runtime.together(build.open_folder if runtime.is_main else None, what)
    watched = progress if runtime.is_main else silent
    runtime.together(lambda: build.build(watched, **share), what)
    manifests: list[Any] = []
    finish = (lambda: manifests.append(build.finish())) if runtime.is_main else None
    runtime.together(finish, what)
    for manifest in manifests:
        if manifest is None:
            print(f"{out}: this task is done; others have parts to write")
        else:
            print(
                f"{out}: {manifest.num_embedded:,} samples embedded in {manifest.num_parts} parts, "
                f"{manifest.num_bad:,} could not be"
            )
    runtime.close()


def source_config(source: str, overrides: list[str]) -> DataConfig:
    """The data settings of a source as a person names it. Raises UserError."""
    path = Path(source)
    kind = None
    if path.suffix in TABLES:
        kind = "table"
    elif path.is_dir() and not any(path.glob("*.tar")):
        kind = "folder"
    if kind is None:
        config = cli_data.data_config(source, overrides)
    else:
        from clipx import config as configs
        from clipx.data.config import DataConfig

        settings: configs.Data = {"data": {"sources": {kind: {"name": kind, "path": source}}}}
        for override in overrides:
            settings = configs.merge(settings, configs.parse_override(override))
        config = configs.build(DataConfig, settings["data"], where="the command line")
    # Each sample once, whatever an epoch of training has.
    return replace(config, weights={}, repeat={}, group=None, pair_images=None, pair_texts=None)


def _share(task: str | None, rank: int, world_size: int) -> dict[str, int]:
    """Which parts are this process's: of rank and world size, or of the task. Raises UserError."""
    if task is None:
        return {"rank": rank, "world_size": world_size}
    match = re.fullmatch(r"(\d+)/(\d+)", task)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--task {task} is not I/N with I from 1 to N, such as 3/16")
    if world_size > 1:
        raise UserError(f"--task {task} is for single processes; torchrun shares parts by itself")
    return {"rank": number - 1, "world_size": count}
