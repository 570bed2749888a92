"""The option `--map` of `clipx index`, which imports what it needs."""

from __future__ import annotations

import argparse
import time
from typing import Any

from clipx.types import UserError


def add_options(index: argparse.ArgumentParser) -> None:
    text = "make the map for the page of `clipx serve`; the index stays as it is"
    index.add_argument("--map", action="store_true", help=text)
    text = "names of regions of the map: one a line, or imagenet (default: words of the captions)"
    index.add_argument("--names", metavar="FILE", help=text)
    text = "the model, if it is not where it was when the corpus was embedded"
    index.add_argument("--model", help=text)


def check_options(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that would have no effect."""
    values = vars(arguments)
    if not arguments.map:
        for option in ("names", "model"):
            if values[option] is not None:
                raise UserError(f"--{option} is for the map; give --map too")
        return
    defaults = {"of": "image", "kind": "auto", "recall": 0.95}
    for option in ("of", "kind", "recall", "memory", "remove", "restore", "to"):
        if values[option] != defaults.get(option):
            raise UserError(
                f"--{option} {values[option]} is for an index, and --map makes the map of the "
                "pictures alone; run `clipx index` once for each"
            )


def make_map(arguments: argparse.Namespace) -> None:
    """Raises UserError."""
    from clipx import embed
    from clipx.search.embedding_map import build_map, map_file, write_map
    from clipx.search.projection import import_umap
    from clipx.search.query import Index
    from clipx.search.vocabulary import Names, names_of_captions, read_names

    started = time.perf_counter()
    import_umap()  # refused before minutes are spent
    model = embed.load(arguments.model) if arguments.model else None
    folder = arguments.folder
    index: Any = Index.open(folder, model=model, exact=True)
    if arguments.names is not None:
        names = Names(read_names(arguments.names))
    else:
        names = names_of_captions(index.metadata.column("caption").to_pylist())
        if not names:
            print("no words of captions, so the map has no labels; --names gives them")
    drawn = build_map(index.rows, names, index.encoder if names else None, note=print)
    try:
        write_map(folder, drawn, index.manifest)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}; make room") from error
    seconds = time.perf_counter() - started
    print(f"{map_file(folder)}: {len(drawn.points):,} points in {seconds:.0f} s")
