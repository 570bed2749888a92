"""The verb `clipx dedup`, which imports what it needs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx import cli_data, cli_hits

if TYPE_CHECKING:
    from clipx.search.near_duplicates import FoundDuplicates
    from clipx.search.query import Index

ROWS_A_CLUSTER = 1000  # of semdedup, on average: comparing them is linear in the corpus
NUM_DRAWN_GROUPS = 40  # on a contact sheet
NUM_DRAWN = 8  # pictures of a group: one row


def add_verbs(verbs: Any) -> None:
    dedup = verbs.add_parser("dedup", help="near duplicates of a corpus, as a list for data.skip")
    dedup.add_argument("folder", type=Path, metavar="DIR", help="of `clipx embed`")
    text = "cosine similarity from which on two pictures are duplicates (default: 0.95)"
    dedup.add_argument("--threshold", type=float, default=0.95, help=text)
    text = "groups of similar pairs, or SemDeDup within clusters (default: pairs)"
    dedup.add_argument("--method", choices=["pairs", "semdedup"], default="pairs", help=text)
    text = "of semdedup (default: one for each 1,000 pictures)"
    dedup.add_argument("--clusters", type=int, metavar="N", help=text)
    dedup.add_argument("--exact", action="store_true", help="compare all, without the index")
    text = "list for data.skip (default: DIR/duplicates.jsonl); the groups are beside it"
    dedup.add_argument("--out", type=Path, metavar="FILE", help=text)
    cli_hits.add_picture_option(dedup, "contact sheet of the largest groups")
    dedup.set_defaults(run=_dedup)


def _dedup(arguments: argparse.Namespace) -> None:
    from clipx.progress import progress
    from clipx.search.duplicate_files import areas, write_duplicates
    from clipx.search.near_duplicates import check_threshold, find_duplicates
    from clipx.search.query import Index

    cli_hits.check_output(arguments)
    check_threshold(arguments.threshold)
    index = Index.open(arguments.folder, exact=arguments.exact)
    num_rows = index.vectors.num_kept
    num_clusters = arguments.clusters
    if num_clusters is None:
        num_clusters = max(1, num_rows // ROWS_A_CLUSTER)
    started = time.perf_counter()
    with progress("comparing pictures", num_rows) as advance:
        found = find_duplicates(
            index.vectors,
            areas(index.metadata),
            threshold=arguments.threshold,
            method=arguments.method,
            num_clusters=num_clusters,
            advance=advance,
        )
    seconds = time.perf_counter() - started
    out = arguments.out or arguments.folder / "duplicates.jsonl"
    groups_file = out.with_name(f"{out.stem}.groups.jsonl")
    num_listed = write_duplicates(found.groups, index.metadata, out, groups_file)
    _print_duplicates(index, found, arguments, seconds)
    print(f"{out}: {num_listed:,} samples; train with data.skip={out}")
    print(f"{groups_file}: the groups, with what is kept of each")
    if num_listed < found.num_dropped:
        print(
            f"{found.num_dropped - num_listed:,} dropped samples have the shard and key of a kept "
            "one and are not in the list: the corpus names a shard twice"
        )
    if arguments.picture is not None:
        _draw_duplicates(index, found, arguments.picture)


def _print_duplicates(
    index: Index, found: FoundDuplicates, arguments: argparse.Namespace, seconds: float
) -> None:
    num_rows = index.vectors.num_kept
    if arguments.method == "semdedup":
        how = "compared within clusters"
    elif found.is_approximate:
        how = f"pairs that the index ({index.vectors.spec.kind}) proposes, at least as many exist"
    else:
        how = "all pairs compared"
    table = []
    for count in found.counts:
        mark = " *" if count.threshold == arguments.threshold else ""
        row = [f"{count.threshold:g}{mark}", f"{count.pairs:,}", f"{count.groups:,}"]
        table.append([*row, f"{count.joined:,}", f"{count.largest:,}"])
    header = ["similarity", "pairs", "groups", "pictures in them", "largest group"]
    cli_data.print_table(header, table, f"{num_rows:,} pictures, {how}; {seconds:.0f} s")
    num_kept = sum(len(group.kept) for group in found.groups)
    print(
        f"at {arguments.threshold:g}: {len(found.groups):,} groups, {num_kept:,} pictures of them "
        f"kept, {found.num_dropped:,} dropped ({found.num_dropped / num_rows:.1%})"
    )
    similarities = [value for group in found.groups for value in group.similarity]
    num_chained = sum(value < arguments.threshold - 1e-6 for value in similarities)
    if num_chained:
        print(
            f"{num_chained:,} dropped pictures are less similar than that to a kept one, the least "
            f"similar {min(similarities):.3f}: others that are dropped too join them"
        )


def _draw_duplicates(index: Index, found: FoundDuplicates, path: Path) -> None:
    from clipx.search.sheets import Group, Shown

    groups = []
    for group in found.groups[:NUM_DRAWN_GROUPS]:
        samples = [Shown(row, (f"kept {_key(index, row)}",)) for row in group.kept[:2]]
        # The least similar first: they show whether the threshold is too low.
        pairs = sorted(zip(group.similarity, group.dropped, strict=True))
        for similarity, row in pairs[: NUM_DRAWN - len(samples)]:
            samples.append(Shown(row, (f"{similarity:.3f} {_key(index, row)}",)))
        groups.append(Group(f"{group.size} pictures", samples))
    cli_hits.print_sheet(index, groups, path)


def _key(index: Index, row: int) -> str:
    return str(index.metadata_of(row)["key"])
