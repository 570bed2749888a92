"""The verbs `clipx anomaly`, `cluster` and `recommend`, which import what they need."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx import cli_data, cli_hits
from clipx.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipx.search.clusters import Clusters
    from clipx.search.query import Index
    from clipx.search.vector_index import VectorIndex

NUM_TYPICAL = 8  # pictures of a cluster on a contact sheet: one row
FOLDER = "of `clipx embed`"


def add_verbs(verbs: Any) -> None:
    _add_anomaly(verbs)
    _add_cluster(verbs)
    _add_recommend(verbs)


def _add_anomaly(verbs: Any) -> None:
    anomaly = verbs.add_parser("anomaly", help="pictures that are unlike all others")
    anomaly.add_argument("folder", type=Path, metavar="DIR", help=FOLDER)
    text = "nearest neighbors over which the distance is averaged (default: 10)"
    anomaly.add_argument("-k", type=int, default=10, help=text)
    anomaly.add_argument("--top", type=int, default=50, help="results (default: 50)")
    text = "distance from the pictures of another folder, of the same model"
    anomaly.add_argument("--reference", type=Path, metavar="DIR2", help=text)
    text = "instead, pictures whose captions fit least"
    anomaly.add_argument("--captions", action="store_true", help=text)
    cli_hits.add_output_options(anomaly)
    anomaly.set_defaults(run=_anomaly)


def _add_cluster(verbs: Any) -> None:
    cluster = verbs.add_parser("cluster", help="clusters of a corpus, with names")
    cluster.add_argument("folder", type=Path, metavar="DIR", help=FOLDER)
    text = "clusters (default: the root of half the pictures, 64 at most)"
    cluster.add_argument("--clusters", type=int, metavar="N", help=text)
    cluster.add_argument("--seed", type=int, default=0, help="of k-means (default: 0)")
    text = "name clusters by zero-shot classes: a file with a name a line, or imagenet"
    cluster.add_argument("--names", metavar="FILE", help=text)
    text = 'of --names; may be repeated (default: "a photo of a {c}")'
    cluster.add_argument("--prompt", action="append", default=[], metavar="TEXT", help=text)
    text = "name clusters by the words of this column (default: caption)"
    cluster.add_argument("--column", metavar="NAME", help=text)
    text = "a row a picture, .parquet or .jsonl (default: DIR/clusters.parquet)"
    cluster.add_argument("--out", type=Path, metavar="FILE", help=text)
    cluster.add_argument("--model", help="the model, if it has moved; for --names")
    cli_hits.add_picture_option(cluster, "contact sheet with a row of typical pictures a cluster")
    cluster.set_defaults(run=_cluster)


def _add_recommend(verbs: Any) -> None:
    recommend = verbs.add_parser("recommend", help="samples like some examples, unlike others")
    recommend.add_argument("folder", type=Path, metavar="DIR", help=FOLDER)
    for name in ("like", "dislike"):
        text = f"a picture to {name}; this and the next two may be repeated"
        recommend.add_argument(
            f"--{name}", type=Path, action="append", default=[], metavar="FILE", help=text
        )
        text = f"key of a sample of the corpus to {name}"
        recommend.add_argument(f"--{name}-key", action="append", default=[], help=text)
        text = "its row, as `--json` shows it, where keys are not unique"
        recommend.add_argument(f"--{name}-row", type=int, action="append", default=[], help=text)
    text = "the mean of the examples, or the most similar example of each sample (default: average)"
    choices = ["average", "best"]
    recommend.add_argument("--strategy", choices=choices, default="average", help=text)
    cli_hits.add_query_options(recommend)
    recommend.set_defaults(run=_recommend)


def _anomaly(arguments: argparse.Namespace) -> None:
    from clipx.progress import progress
    from clipx.search.query import Index
    from clipx.search.unusual import most_unusual, worst_captions
    from clipx.search.vectors import read_vectors

    cli_hits.check_output(arguments)
    index = Index.open(arguments.folder)
    top = arguments.top
    kept = index.kept
    if arguments.captions:
        if arguments.reference is not None:
            raise UserError("--captions and --reference exclude each other; leave one out")
        texts = read_vectors(index.folder, index.manifest, "text")
        found = worst_captions(index.rows, texts, top=top, ranked=kept)
        title = "pictures whose captions fit least"
        score = "similarity"
    else:
        neighbors = _neighbors(index, arguments.reference)
        with progress("measuring pictures", len(kept)) as advance:
            found = most_unusual(
                index.rows, neighbors, k=arguments.k, top=top, advance=advance, ranked=kept
            )
        title = f"pictures farthest from their {arguments.k} nearest"
        score = "distance"
    hits = index.hits([(each.row, each.score) for each in found])
    cli_hits.print_hits(index, hits, arguments, title=title, score=score)


def _neighbors(index: Index, reference: Path | None) -> VectorIndex:
    """Among which neighbors are searched. Raises UserError."""
    from clipx.search.query import Index

    if reference is None:
        return index.vectors
    if reference.resolve() == index.folder.resolve():
        raise UserError(f"--reference {reference} is the folder itself; leave the option out")
    other = Index.open(reference)
    if other.manifest.model_digest != index.manifest.model_digest:
        raise UserError(
            f"--reference {reference} was embedded by {other.manifest.model}, and {index.folder} "
            f"by another model, {index.manifest.model}; embed one of them again"
        )
    return other.vectors


def _cluster(arguments: argparse.Namespace) -> None:
    from clipx import embed
    from clipx.progress import note
    from clipx.search.cluster_files import check_file, write_clusters
    from clipx.search.cluster_names import PROMPT, names_by_class, names_by_words
    from clipx.search.clusters import cluster_rows, default_num_clusters
    from clipx.search.query import Index

    cli_hits.check_output(arguments)
    out = arguments.out or arguments.folder / "clusters.parquet"
    check_file(out)
    model = embed.load(arguments.model) if arguments.model else None
    index = Index.open(arguments.folder, model=model, exact=True)
    kept = index.kept
    metadata = index.metadata.take(kept)
    rows = index.rows[kept]
    num_rows = len(rows)
    num_clusters = arguments.clusters
    if num_clusters is None:
        num_clusters = default_num_clusters(num_rows)
    class_names = _class_names(arguments)
    texts = _texts(metadata, arguments.column or "caption")
    clusters = cluster_rows(rows, num_clusters, seed=arguments.seed)
    names = names_by_words(texts, clusters)
    if class_names:
        prompts = arguments.prompt or [PROMPT]
        names = names_by_class(index.encoder, rows, clusters, class_names, prompts)
    write_clusters(out, metadata, kept, clusters, names)
    table = []
    sizes = clusters.sizes.tolist()
    for number, (size, cohesion) in enumerate(zip(sizes, clusters.cohesion.tolist(), strict=True)):
        name = names[number] or "-"
        table.append([str(number), f"{size:,}", f"{size / num_rows:.1%}", f"{cohesion:.3f}", name])
    header = ["cluster", "size", "share", "cohesion", "name"]
    cli_data.print_table(header, table, f"{num_rows:,} pictures")
    if len(sizes) < num_clusters:
        print(f"{num_clusters - len(sizes)} of {num_clusters} clusters would be empty")
    if not any(names):
        note("clipx: there are no captions to name clusters by; give --names FILE or --column NAME")
    print(f"{out}: the cluster of each picture")
    if arguments.picture is not None:
        _draw_clusters(index, clusters, names, arguments.picture)


def _class_names(arguments: argparse.Namespace) -> list[str]:
    """Those of --names; none if clusters are named by words. Raises UserError."""
    from clipx.search.vocabulary import read_names

    if arguments.names is None:
        if arguments.prompt:
            raise UserError("--prompt goes with --names FILE, which is not given")
        return []
    if arguments.column is not None:
        raise UserError("--names and --column exclude each other; leave one out")
    return read_names(arguments.names)


def _texts(metadata: Any, name: str) -> list[str | None]:
    """(N,) of a column. Raises UserError."""
    from clipx.search.metadata import column_of

    values = column_of(metadata, name).to_pylist()
    return [None if value is None else str(value) for value in values]


def _draw_clusters(
    index: Index, clusters: Clusters, names: Sequence[str | None], path: Path
) -> None:
    from clipx.search.sheets import Group, Shown

    groups = []
    kept = index.kept
    for number, size in enumerate(clusters.sizes.tolist()):
        samples = []
        for place in clusters.typical(number, NUM_TYPICAL).tolist():
            caption = f"{clusters.similarity[place]:.3f}"
            samples.append(Shown(int(kept[place]), (caption,)))
        title = f"{number}: {names[number] or '-'}, {size:,} pictures"
        groups.append(Group(title, samples))
    cli_hits.print_sheet(index, groups, path)


def _recommend(arguments: argparse.Namespace) -> None:
    from clipx import embed
    from clipx.search.query import Index

    cli_hits.check_output(arguments)
    model = embed.load(arguments.model) if arguments.model else None
    index = Index.open(arguments.folder, model=model, exact=arguments.exact)
    hits = index.recommend(
        likes=_examples(index, arguments.like, arguments.like_key, arguments.like_row),
        dislikes=_examples(index, arguments.dislike, arguments.dislike_key, arguments.dislike_row),
        strategy=arguments.strategy,
        k=arguments.k,
        where=arguments.where,
    )
    cli_hits.print_hits(index, hits, arguments, title="recommended")


def _examples(
    index: Index, files: list[Path], keys: list[str], rows: list[int]
) -> list[Path | int]:
    """Raises UserError."""
    return [*files, *(index.row_of(key) for key in keys), *rows]
