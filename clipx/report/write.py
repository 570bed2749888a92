"""`clipx report RUN`: render the page and write it."""

from __future__ import annotations

from pathlib import Path

import jinja2

from clipx.files import write_whole
from clipx.report import charts, evaluation, maps, run_facts, space
from clipx.report.classes import MIN_IMAGES, class_report
from clipx.report.collect import Record, read_record, scores_by_set
from clipx.report.curves import collapse_alarms, learning_curves
from clipx.report.formats import exact_text, percent_text
from clipx.report.model_outputs import ModelOutputs, collect_outputs
from clipx.report.retrieval import retrieval_report
from clipx.types import UserError


def write_report(run: Path, out: Path | None = None) -> Path:
    """Returns the path of the page. Raises UserError if `run` is not a run, or `out` cannot be
    written."""
    target = out or run / "report.html"
    record = read_record(run)
    if target.is_dir():
        raise UserError(f"{target} is a folder; give the name of a file, such as report.html")
    outputs = collect_outputs(run)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, render(record, outputs))
    except OSError as error:
        raise UserError(
            f"{target} cannot be written: {error}; choose another with --out"
        ) from error
    return target


def render(record: Record, outputs: ModelOutputs) -> str:
    """The page as HTML."""
    scores = scores_by_set(record.results)
    page = template_environment().get_template("page.html.j2")
    return page.render(
        name=record.path.resolve().name,
        record=record,
        outputs=outputs,
        tiles=run_facts.tiles(record, scores),
        facts=run_facts.facts(record, outputs),
        curves=learning_curves(record.metrics),
        collapse_alarms=collapse_alarms(record.metrics),
        scores=scores,
        evaluation=evaluation,
        newest_evaluation=max(map(evaluation.newest_step, scores.values()), default=None),
        classes=list(map(class_report, outputs.classified)),
        min_confusion_images=MIN_IMAGES,
        retrieval=list(map(retrieval_report, outputs.paired)),
        # Maps take seconds, and one set shows the space.
        space=space.space_report(outputs.paired[0]) if outputs.paired else None,
        health_over_time=space.health_over_time(scores),
        line_chart_geometry=charts,
        map_geometry=maps,
    )


def template_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions and class names may contain tags
        undefined=jinja2.StrictUndefined,  # a misspelled name fails instead of being left out
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["truncate.leeway"] = 0  # else texts are cut up to 5 beyond their length
    environment.filters["count"] = "{:,}".format
    environment.filters["exact"] = exact_text
    environment.filters["percent"] = percent_text
    environment.filters["pixel"] = "{:.1f}".format
    return environment
