"""The verb `clipx index`, which imports what it needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipx import cli_data, cli_map
from clipx.types import UserError

NUM_SHOWN = 5


def add_verbs(verbs: Any) -> None:
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
    text = "keys, one a line, or a list for data.skip: their embeddings are not found any more"
    index.add_argument("--remove", type=Path, metavar="FILE", help=text)
    text = "take the keys of FILE, or all, from the list of removed ones"
    index.add_argument("--restore", nargs="?", const="", metavar="FILE", help=text)
    text = "upload to a collection of Qdrant, http://host:6333/name; the key in QDRANT_API_KEY"
    index.add_argument("--to", metavar="URL", help=text)
    text = "of a new collection: vectors of a byte or a bit a number in memory, whole ones on disk"
    kinds = ["none", "int8", "binary"]
    index.add_argument("--quantization", choices=kinds, default="none", help=text)
    text = "with --to: this is task I of N, from 1, which upload at the same time"
    index.add_argument("--task", metavar="I/N", help=text)
    text = "of a new collection: vectors on disk, read through the page cache"
    index.add_argument("--on-disk", action="store_true", help=text)
    cli_map.add_options(index)
    index.set_defaults(run=_index)


def _index(arguments: argparse.Namespace) -> None:
    cli_map.check_options(arguments)
    if arguments.map:
        cli_map.make_map(arguments)
        return
    is_alone = arguments.to is None
    if is_alone and (arguments.task or arguments.on_disk or arguments.quantization != "none"):
        raise UserError("--task, --on-disk and --quantization go with --to URL, which is missing")
    changes_list = arguments.remove is not None or arguments.restore is not None
    try:
        if changes_list:
            _change_list(arguments)
        if arguments.to is not None:
            _upload(arguments)
        elif not changes_list:
            _build(arguments)
    except OSError as error:
        raise UserError(f"{arguments.folder} cannot be written: {error}; make room") from error


def _change_list(arguments: argparse.Namespace) -> None:
    """Raises UserError and OSError."""
    from clipx.search.embeddings import open_complete
    from clipx.search.folder_store import read_table
    from clipx.search.removal import add_removals, read_removals, restore_removals

    folder = arguments.folder
    manifest = open_complete(folder)
    table = read_table(folder, manifest)
    counts = None
    if arguments.restore is not None:
        back = read_removals(Path(arguments.restore)) if arguments.restore else None
        counts = restore_removals(folder, table, back)
        print(f"{counts.num_changed:,} of {counts.num_listed:,} keys are taken back")
    if arguments.remove is not None:
        counts = add_removals(folder, table, read_removals(arguments.remove))
        print(f"{counts.num_changed:,} of {counts.num_listed:,} keys are new in the list")
        if counts.unknown:
            shown = ", ".join(counts.unknown[:NUM_SHOWN])
            print(f"there is no embedding here for {len(counts.unknown):,} of them, first {shown}")
    assert counts is not None, "called with one of the options"
    print(f"{folder}: {counts.num_rows:,} of {table.num_rows:,} embeddings are removed")


def _upload(arguments: argparse.Namespace) -> None:
    """Raises UserError."""
    from clipx.progress import progress
    from clipx.search.parts import share_of_task
    from clipx.search.qdrant_connection import LONG_WAITS, QdrantConnection
    from clipx.search.qdrant_record import Quantization
    from clipx.search.qdrant_upload import QdrantUpload

    share = share_of_task(arguments.task)
    connection = QdrantConnection.open(arguments.to)
    # A wrong address or key is an error at once; later, a server may be started again.
    connection.call(connection.client.collection_exists)
    connection.waits = LONG_WAITS
    quantization: Quantization = arguments.quantization
    upload = QdrantUpload(
        connection, arguments.folder, arguments.of, quantization, on_disk=arguments.on_disk
    )
    counts = upload.run(progress, **share)
    print(f"{arguments.to}: {counts.num_points:,} points, {counts.num_uploaded:,} of them uploaded")
    if counts.num_points < counts.num_wanted:
        print(f"this task is done; others have {counts.num_wanted - counts.num_points:,} to upload")


def _build(arguments: argparse.Namespace) -> None:
    """Raises UserError and OSError."""
    from clipx.search.build_index import build_index
    from clipx.search.embeddings import open_complete
    from clipx.search.folder_store import read_table
    from clipx.search.index_files import grown_index, write_index
    from clipx.search.removal import removed_rows
    from clipx.search.vectors import read_vectors

    folder = arguments.folder
    if not 0 < arguments.recall <= 1:
        raise UserError(f"--recall {arguments.recall} is not in (0, 1]")
    manifest = open_complete(folder)
    rows = read_vectors(folder, manifest, arguments.of)
    removed = removed_rows(folder, read_table(folder, manifest))
    queries = None
    if manifest.has_texts:
        # Captions look for images, and images for captions.
        others = read_vectors(folder, manifest, "text" if arguments.of == "image" else "image")
        # Zeros stand for samples without a caption.
        queries = others if others.any(axis=1).sum() > 1 else None
    max_bytes = None if arguments.memory is None else int(arguments.memory * 2**30)
    grown = grown_index(folder, arguments.of, manifest, rows, arguments.kind)
    # An index that has outgrown --memory is built anew, perhaps as another kind.
    if grown is not None and max_bytes is not None and grown.num_bytes() > max_bytes:
        grown = None
    chosen = build_index(
        rows,
        queries,
        kind=arguments.kind,
        recall=arguments.recall,
        max_bytes=max_bytes,
        removed=removed,
        grown=grown,
        note=print,
        on_built=lambda index, seconds: print(f"{index.spec.kind}: built in {seconds:.0f} s"),
    )
    has_grown = grown is not None and chosen.index.is_same(grown)
    if has_grown:
        print(f"{chosen.index.spec.kind}: new rows were added to the index")
    write_index(folder, arguments.of, chosen, manifest, has_grown=has_grown)
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
