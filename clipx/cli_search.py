"""The verbs `clipx embed` and `search`, which import what they need."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from clipx import cli_hits
from clipx.types import PrecisionKind, UserError

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
    kinds = get_args(PrecisionKind)
    embed.add_argument("--precision", choices=kinds, default="auto", help=text)
    text = "this is task I of N, from 1, as in a SLURM array; torchrun needs no such option"
    embed.add_argument("--task", metavar="I/N", help=text)
    embed.set_defaults(run=_embed)

    search = verbs.add_parser("search", help="search embeddings by text and pictures")
    text = "of `clipx embed`, or the URL of a collection, http://host:6333/name"
    search.add_argument("source", metavar="DIR", help=text)
    text = 'texts to be near; a text after - is to be far: "a red car" - "a toy"'
    search.add_argument("texts", nargs="*", metavar="TEXT", help=text)
    text = "a picture to be near; may be repeated"
    search.add_argument("--image", type=Path, action="append", default=[], help=text)
    text = "a picture to be far; may be repeated"
    search.add_argument("--not-image", type=Path, action="append", default=[], help=text)
    search.add_argument("--of", choices=["image", "text"], default="image", help="default: image")
    cli_hits.add_query_options(search)
    search.set_defaults(run=_search)


def _embed(arguments: argparse.Namespace) -> None:
    """Embed on all ranks that the launcher has started."""
    from clipx import embed
    from clipx.distributed.runtime import start
    from clipx.progress import progress, silent
    from clipx.search.embed_corpus import EmbedCorpus
    from clipx.search.parts import share_of_task
    from clipx.training.precision import build_precision

    if arguments.part_size < 1:
        raise UserError(f"--part-size {arguments.part_size} is below 1")
    out = arguments.out
    config = source_config(arguments.source, arguments.overrides)
    # Ranks wait for the slowest, whose parts may take hours longer than those of the others.
    runtime = start("auto", timeout_minutes=7 * 24 * 60)
    share = share_of_task(arguments.task, runtime.rank, runtime.world_size)
    # Held-out samples too: a search is to find all pictures.
    sources = runtime.on_main(lambda: config.open_sources("all")) or {}
    corpus = config.corpus(runtime.from_main(sources), seed=0, needs_captions=False)
    dtype = build_precision(arguments.precision, runtime.device).dtype
    encoder = runtime.main_first(
        lambda: embed.load(arguments.model, device=runtime.device, dtype=dtype)
    )
    model = Path(arguments.model)
    build = EmbedCorpus(
        out,
        corpus,
        config,
        encoder,
        # Found again from anywhere.
        model=str(model.resolve()) if model.exists() else arguments.model,
        part_size=arguments.part_size,
        dtype=arguments.dtype,
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
        from clipx.training.run_config import load_data_config

        config = load_data_config(source, overrides)
    else:
        from clipx import config as configs
        from clipx.data.config import DataConfig

        settings: configs.Data = {
            "data": {"sources": {kind: {"name": kind, "path": str(path.resolve())}}}
        }
        for override in overrides:
            settings = configs.merge(settings, configs.parse_override(override))
        config = configs.build(DataConfig, settings["data"], where="the command line")
    shards = config.shards
    if isinstance(shards, str) and Path(shards).exists():
        config = replace(config, shards=str(Path(shards).resolve()))  # found from anywhere
    # Each sample once, whatever an epoch of training has.
    return replace(config, weights={}, repeat={}, group=None, pair_images=None, pair_texts=None)


def _search(arguments: argparse.Namespace) -> None:
    from clipx import embed
    from clipx.search.query import Index

    cli_hits.check_output(arguments)
    model = embed.load(arguments.model) if arguments.model else None
    index = Index.open(arguments.source, modality=arguments.of, model=model, exact=arguments.exact)
    hits = index.search(terms=_terms(arguments), k=arguments.k, where=arguments.where)
    title = " ".join([*arguments.texts, *(path.name for path in arguments.image)])
    cli_hits.print_hits(index, hits, arguments, title=title)


def _terms(arguments: argparse.Namespace) -> list[Any]:
    """Raises UserError."""
    from clipx.search.query import Term

    terms = []
    sign = 1
    for text in arguments.texts:
        if text in ("+", "-"):
            sign = 1 if text == "+" else -1
        else:
            terms.append(Term(sign, text=text))
            sign = 1
    terms += [Term(1, image=path) for path in arguments.image]
    terms += [Term(-1, image=path) for path in arguments.not_image]
    if not terms:
        raise UserError('give a text, such as clipx search DIR "a red car", or --image FILE')
    return terms
