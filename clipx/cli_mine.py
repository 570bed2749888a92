"""The verb `clipx mine`. It imports what it needs, so that `clipx --help` is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx import cli_data
from clipx.cores import usable_cores
from clipx.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from clipx.mining.search import Mined, Rules


def add_verbs(verbs: Any) -> None:
    mine = verbs.add_parser("mine", help="hard negatives of each sample, for data.negatives")
    mine.add_argument("model", metavar="MODEL", help="as for `clipx eval`")
    mine.add_argument("corpus", metavar="CORPUS", help="shards, or the YAML file of a run")
    mine.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. data.caption_field=caption"
    )
    mine.add_argument("--out", type=Path, required=True, metavar="FILE", help="for data.negatives")
    mine.add_argument("--negatives", type=int, default=4, help="of each sample (default: 4)")
    mine.add_argument("--skip", type=int, default=0, help="so many of the nearest (default: 0)")
    mine.add_argument("--window", type=int, default=50, help="ranks after these (default: 50)")
    text = "only candidates below this share of the positive's similarity; 1 for none (default: %s)"
    mine.add_argument("--relative", type=float, default=0.95, help=text % 0.95)
    text = "only candidates so far below the positive's similarity (default: any)"
    mine.add_argument("--margin", type=float, help=text)
    mine.add_argument("--workers", type=int, help="reading processes (default: one per core)")
    mine.set_defaults(run=_mine)


def _mine(arguments: argparse.Namespace) -> None:
    """Mine and print statistics."""
    from clipx.training.run_config import load_data_config

    out = arguments.out
    if not out.parent.is_dir():  # refused before minutes of embedding
        raise UserError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    config = load_data_config(arguments.corpus, arguments.overrides)
    rules = _rules(arguments)

    import torch

    from clipx import embed
    from clipx.data.negatives import write_negatives
    from clipx.mining.search import mine
    from clipx.mining.snapshot import take_snapshot
    from clipx.progress import progress

    if config.pair is not None:
        raise UserError("clipx mine needs images with captions; leave out data.pair_*")
    corpus = config.open(seed=0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = embed.load(arguments.model, device=device)
    workers = usable_cores() if arguments.workers is None else arguments.workers
    total = int(corpus.sizes.sum())
    with progress("embedding samples", total) as advance:
        snapshot = take_snapshot(encoder, config, corpus, workers=workers, advance=advance)
    with progress("searching negatives", total) as advance:
        mined = mine(snapshot, rules, device=device, advance=advance)
    _print(mined, rules)
    if not len(mined.negative):
        raise UserError(
            f"no caption passes these rules, so {out} is not written; raise --relative (1 for any) "
            "or --window, or train the model longer: it finds other captions nearer than the own"
        )
    about = {"model": encoder.source, **vars(rules)}
    try:
        write_negatives(out, mined.numbers, corpus_digest=corpus.digest, about=about)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}") from error
    print(f"{out}: train with data.negatives={out}")


def _rules(arguments: argparse.Namespace) -> Rules:
    """Raises UserError."""
    from clipx.mining.search import Rules

    lowest = {"negatives": 1, "skip": 0, "window": 1}
    for name, low in lowest.items():
        value = vars(arguments)[name]
        if value < low:
            raise UserError(f"--{name} {value} is below {low}")
    if arguments.window < arguments.negatives:
        raise UserError(
            f"--window {arguments.window} has fewer ranks than --negatives {arguments.negatives}; "
            "widen it"
        )
    if not 0 < arguments.relative <= 1:
        raise UserError(f"--relative {arguments.relative} is not in (0, 1]; 0.95 is usual")
    if arguments.margin is not None and not 0 <= arguments.margin <= 2:
        raise UserError(f"--margin {arguments.margin} is not in [0, 2], where cosines differ")
    return Rules(
        count=arguments.negatives,
        skip=arguments.skip,
        window=arguments.window,
        relative=arguments.relative if arguments.relative < 1 else None,
        margin=arguments.margin,
    )


def _print(mined: Mined, rules: Rules) -> None:
    """What mine_hard_negatives of sentence-transformers prints."""
    columns = (mined.positive, mined.negative, mined.difference)
    rows = [["count", *(f"{len(values):,}" for values in columns)]]
    for name in ("mean", "median", "std", "min", "25 %", "75 %", "max"):
        rows.append([name, *(statistic(values, name) for values in columns)])
    cli_data.print_table(["similarity", "positive", "negative", "difference"], rows)
    settings = {
        "skip": f"--skip {rules.skip}",
        "relative": f"--relative {rules.relative}",
        "margin": f"--margin {rules.margin}",
    }
    for rule, number in mined.skipped.items():
        if number:
            print(f"{settings[rule]} left out {number:,} of {mined.considered:,} candidates")
    if mined.incomplete:
        num_samples = len(mined.positive)
        print(
            f"{mined.incomplete:,} of {num_samples:,} samples "
            f"({mined.incomplete / num_samples:.1%}) have fewer than {rules.count} negatives; "
            "a wider --window or a higher --relative finds more"
        )


def statistic(values: Tensor, name: str) -> str:
    """One of a column of similarities, as text; - if it is empty."""
    if not len(values):
        return "-"
    values = values.double()
    if name in ("median", "25 %", "75 %"):
        # torch.quantile is limited to 16 million values.
        import numpy as np

        share = {"median": 50, "25 %": 25, "75 %": 75}[name]
        return f"{np.percentile(values.numpy(), share):.4f}"
    number = {
        "mean": values.mean(),
        "std": values.std(correction=0),
        "min": values.min(),
        "max": values.max(),
    }[name]
    return f"{number.item():.4f}"
