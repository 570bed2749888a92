"""The verb."""

from __future__ import annotations

import sys
from pathlib import Path

from clipx.files import write_whole
from clipx.report import classes, curves, facts, pairs, quality, scores, space
from clipx.report.page import page, tile
from clipx.report.record import Record, is_number, read_record, scores_of, settings
from clipx.report.seen import Seen, look
from clipx.types import UserError
from clipx.viz.markup import Markup
from clipx.viz.scales import exact_text

TILES = (("zeroshot-top1", "zero-shot top-1"), ("text_to_image_R@1", "text to image R@1"))


def write_report(run: Path, out: Path | None = None) -> Path:
    """Raises UserError where `run` is no run, or `out` cannot be written."""
    target = out or run / "report.html"
    record = read_record(run)
    if target.is_dir():
        raise UserError(f"{target} is a folder; give the name of a file, such as report.html")
    seen = look(run, lambda told: print(told, file=sys.stderr))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, render(record, seen))
    except OSError as error:
        raise UserError(
            f"{target} cannot be written: {error}; choose another with --out"
        ) from error
    return target


def render(record: Record, seen: Seen) -> str:
    sections = [
        facts.section(record, seen.facts),
        curves.section(record),
        scores.section(record),
        classes.section(seen),
        pairs.section(seen),
        space.section(record, seen),
        quality.section(record),
    ]
    name = record.path.resolve().name
    return page(f"Report on {name}", lead(record, seen), tiles(record), sections)


def lead(record: Record, seen: Seen) -> str:
    model = settings(record.config, "model").get("name", "a model")
    told = f"{model}, trained by clipx."
    if seen.source:
        return f"{told} Pictures and maps are of {seen.source}."
    return f"{told} There is no model to look at: {seen.faults['model'][0]}"


def tiles(record: Record) -> list[Markup]:
    """The few numbers that one asks for first."""
    out = []
    last = record.metrics[-1] if record.metrics else {}
    if "step" in last:
        out.append(
            tile(exact_text(last["step"]), "steps", f"{last.get('samples_seen', 0):,} samples")
        )
    if is_number(last.get("train/loss")):
        out.append(tile(exact_text(last["train/loss"]), "newest loss"))
    found = scores_of(record.results)
    for metric, title in TILES:
        best = [(sets[metric][-1].value, name) for name, sets in found.items() if metric in sets]
        if best:
            value, name = best[0]
            out.append(tile(scores.value_text(metric, value), title, name))
    if seconds := facts.training_seconds(record):
        rate = last["samples_seen"] / seconds
        out.append(tile(facts.clock(seconds), "training time", f"{rate:,.0f} samples/s"))
    out.append(tile(f"{len(record.quarantine):,}", "bad samples"))
    return out
