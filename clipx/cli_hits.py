"""Results of the verbs that search: as a table, as JSON lines, as a contact sheet."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx import cli_data, strict_json

if TYPE_CHECKING:
    from clipx.search.query import Hit, Index

SCORE_DIGITS = 6


def add_query_options(verb: Any) -> None:
    """Of the verbs that search a folder, with those of `add_output_options`."""
    verb.add_argument("-k", type=int, default=10, help="results (default: 10)")
    text = 'condition on the metadata, such as "source = mdi and width >= 64"'
    verb.add_argument("--where", metavar="CONDITION", help=text)
    verb.add_argument("--exact", action="store_true", help="without the index")
    text = "the model, if it is not where it was when the corpus was embedded"
    verb.add_argument("--model", help=text)
    add_output_options(verb)


def add_output_options(verb: Any) -> None:
    verb.add_argument("--json", action="store_true", help="a JSON line a result")
    add_picture_option(verb, "contact sheet of the results")


def add_picture_option(verb: Any, text: str) -> None:
    verb.add_argument("--picture", type=Path, metavar="FILE.png", help=text)


def check_output(arguments: argparse.Namespace) -> None:
    """Raises UserError, before anything is computed."""
    if arguments.picture is not None:
        from clipx.picture_grid import check_picture_path

        check_picture_path(arguments.picture)


def print_hits(
    index: Index,
    hits: Sequence[Hit],
    arguments: argparse.Namespace,
    *,
    title: str,
    score: str = "score",
) -> None:
    """Raises UserError.

    arguments: with the options of `add_output_options`
    title: of the contact sheet; score: heading of the column of scores
    """
    if arguments.json:
        for hit in hits:
            record: dict[str, Any] = {"row": hit.row, "score": round(hit.score, SCORE_DIGITS)}
            for name, value in hit.metadata.items():
                # As `clipx embed` renames columns that have the name of one of ours.
                record[f"own_{name}" if name in ("row", "score") else name] = value
            print(strict_json.dumps(record, ensure_ascii=False))
    else:
        table = []
        for hit in hits:
            table.append([f"{hit.score:.3f}", str(hit.metadata["key"]), _caption(hit)])
        cli_data.print_table([score, "key", "caption"], table)
    if arguments.picture is not None:
        from clipx.search.sheets import Group, Shown

        samples = []
        for hit in hits:
            lines = (f"{hit.score:.3f}  {hit.metadata['key']}", _caption(hit))
            samples.append(Shown(hit.row, lines))
        print_sheet(index, [Group(title, samples)], arguments.picture)


def print_sheet(index: Index, groups: Sequence[Any], path: Path) -> None:
    """Write a contact sheet and print what there is to know about it, on stderr, as the results may
    be JSON. Raises UserError."""
    from clipx.progress import note
    from clipx.search.sheets import write_sheet

    for message in write_sheet(index, groups, path):
        note(message)


def _caption(hit: Hit) -> str:
    return str(hit.metadata.get("caption", ""))
