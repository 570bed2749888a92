"""The verbs `clipx embed`, `index` and `search`, which import what they need."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from clipx import cli_data, cli_map
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

    index = verbs.add_parser("index", help="an index of embeddings, with measured recall")
    index.add_argument("folder", type=Path, metavar="DIR", help="of `clipx embed`")
    index.add_argument("--of", choices=["image", "text"], default="image", help="default: image")
    kinds = ["auto", "exact", "hnsw", "ivf", "ivfpq"]
    text = "auto: exact up to 20,000 vectors, else the fastest that meets --recall"
    index.add_argument("--kind", choices=kinds, default="auto", help=text)
    text = "share of the exact 10 nearest that are found (default: 0.95)"
    index.add_argument("--recall", type=float, default=0.95, help=text)
    text = "GiB of memory that the index may take (default: any)"
    index.add_argument("--memory", type=float, metavar="GIB", help=text)
    cli_map.add_options(index)
    index.set_defaults(run=_index)

    search = verbs.add_parser("search", help="search embeddings by text and pictures")
    search.add_argument("folder", type=Path, metavar="DIR", help="of `clipx embed`")
    text = 'texts to be near; a text after - is to be far: "a red car" - "a toy"'
    search.add_argument("texts", nargs="*", metavar="TEXT", help=text)
    text = "a picture to be near; may be repeated"
    search.add_argument("--image", type=Path, action="append", default=[], help=text)
    text = "a picture to be far; may be repeated"
    search.add_argument("--not-image", type=Path, action="append", default=[], help=text)
    search.add_argument("-k", type=int, default=10, help="results (default: 10)")
    text = 'condition on the metadata, such as "source = mdi and width >= 64"'
    search.add_argument("--where", metavar="CONDITION", help=text)
    search.add_argument("--of", choices=["image", "text"], default="image", help="default: image")
    search.add_argument("--exact", action="store_true", help="without the index")
    text = "the model, if it is not where it was when the corpus was embedded"
    search.add_argument("--model", help=text)
    search.add_argument("--json", action="store_true", help="a JSON line a result")
    search.set_defaults(run=_search)


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
        config = cli_data.data_config(source, overrides)
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


def _index(arguments: argparse.Namespace) -> None:
    cli_map.check_options(arguments)
    if arguments.map:
        cli_map.make_map(arguments)
        return
    import torch

    from clipx.search.build_index import build_index, write_index
    from clipx.search.embeddings import open_complete, read_vectors

    folder = arguments.folder
    if not 0 < arguments.recall <= 1:
        raise UserError(f"--recall {arguments.recall} is not in (0, 1]")
    manifest = open_complete(folder)
    rows = read_vectors(folder, manifest, arguments.of)
    queries = None
    if manifest.has_texts:
        # Captions look for images, and images for captions.
        others = read_vectors(folder, manifest, "text" if arguments.of == "image" else "image")
        # Rows of zeros are samples without a caption.
        found = torch.from_numpy(others[others.any(axis=1)].astype("float32"))
        queries = found if len(found) > 1 else None
    max_bytes = None if arguments.memory is None else int(arguments.memory * 2**30)
    chosen = build_index(
        rows, queries, kind=arguments.kind, recall=arguments.recall, max_bytes=max_bytes, note=print
    )
    try:
        write_index(folder, arguments.of, chosen, manifest)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}; make room") from error
    table = []
    for trial in [*chosen.trials, chosen.measured]:
        low, high = trial.interval
        spec = trial.spec
        table.append(
            [
                spec.kind,
                str(spec.effort or "-"),
                f"{trial.recall:.3f} ({low:.3f} to {high:.3f})",
                f"{trial.milliseconds:.2f}",
                f"{trial.num_bytes / 2**20:,.0f}",
            ]
        )
    header = ["kind", "effort", "recall@10 (95 %)", "ms a query", "MiB"]
    cli_data.print_table(header, table, f"{len(rows):,} vectors; the last line, on other queries")


def _search(arguments: argparse.Namespace) -> None:
    import json

    from clipx import embed
    from clipx.search.query import Index

    model = embed.load(arguments.model) if arguments.model else None
    index = Index.open(arguments.folder, modality=arguments.of, model=model, exact=arguments.exact)
    hits = index.search(terms=_terms(arguments), k=arguments.k, where=arguments.where)
    if arguments.json:
        for hit in hits:
            record = {"row": hit.row, "score": round(hit.score, 6), **hit.metadata}
            print(json.dumps(record, ensure_ascii=False))
        return
    table = []
    for hit in hits:
        data = hit.metadata
        table.append([f"{hit.score:.3f}", str(data["key"]), str(data.get("caption", ""))])
    cli_data.print_table(["score", "key", "caption"], table)


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
