"""`clipx eval` and `clipx compare`: tables for people, and a picture of a model's guesses."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from clipx import embed, strict_json
from clipx.comparison import Difference
from clipx.config import Data, build, component, config, load, parse_override, read
from clipx.contact_sheet import is_drawable, write_contact_sheet
from clipx.distributed.runtime import start
from clipx.evaluators.sample_source import uses_held_out, with_held_out
from clipx.files import cache_folder
from clipx.picture_grid import check_picture_path
from clipx.progress import make_console
from clipx.results import check_out, is_rate, lines_of, write_results
from clipx.training.config import TrainConfig
from clipx.training.evaluation import evaluate_each, evaluator_for, faults_of
from clipx.training.precision import build_precision
from clipx.types import Result, Setting, UserError

WIDTH = 140  # of tables in a log file, which has no terminal to fit


@config
class Suite:
    """A YAML file with test sets: `clipx eval MODEL --suite FILE key=value ...`"""

    evaluators: dict[str, component("clipx.evaluators")] = Field(min_length=1)  # type: ignore[valid-type]
    """By the name of the set, with which the names of its metrics begin."""


def run(arguments: Namespace) -> None:
    """Evaluate on all ranks that the launcher has started, and print and write the results on rank
    0. Raises UserError, also after results if some of the evaluators have failed.

    arguments: of `clipx eval`, see cli_eval.py
    """
    model = arguments.model
    # Everything that can be refused is refused before minutes of embedding.
    if arguments.out:
        check_out(arguments.out)
    evaluators = chosen_evaluators(model, arguments.sets, arguments.suite, arguments.overrides)
    drawable = [name for name, config in evaluators.items() if is_drawable(config)]
    if arguments.picture:
        check_picture_path(arguments.picture)
    if arguments.picture and not drawable:
        raise UserError(
            "none of the evaluators is zero_shot or retrieval, so there is nothing to draw; leave "
            "--picture out, or name such a test set with --set"
        )
    runtime = start("auto")
    dtype = build_precision(arguments.precision, runtime.device).dtype  # sets TF32 too
    # All sets that cannot be read are reported at once; a single one fails by itself.
    faults = faults_of(evaluators) if runtime.is_main and len(evaluators) > 1 else []
    runtime.agree("\n".join(faults) or None)

    encoder = runtime.main_first(
        lambda: embed.load(model, device=runtime.device, dtype=dtype, averaged=not arguments.raw)
    )
    setting = Setting(ranks=runtime, cache=cache_folder("classifiers"), device=runtime.device)
    if runtime.is_main and sys.stderr.isatty():
        setting = replace(setting, progress=show_progress)
    results, faults = evaluate_each(encoder, evaluators, setting)

    if runtime.is_main and results:
        if arguments.json:
            for name, result in results.items():
                for line in lines_of(model, name, result):
                    print(strict_json.dumps(line))
        else:
            print_table(encoder.source, results)
        if arguments.out:
            write_results(arguments.out, model, results)
        if arguments.picture:
            drawn = {name: evaluators[name] for name in drawable if name in results}
            write_contact_sheet(encoder, drawn, arguments.picture, results)
    runtime.close()
    if faults:
        raise UserError("\n".join(faults))


def show_progress(done: int, total: int) -> None:
    print(f"\rimages {done:,}/{total:,}", end="\n" if done == total else "", file=sys.stderr)


def chosen_evaluators(
    model: str, sets: Sequence[Path], suite: Path | None, overrides: Sequence[str]
) -> Mapping[str, Any]:
    """The given test sets and suite, else the evaluators of the run's config. Raises UserError.

    overrides: `evaluators.NAME.key=value` changes an evaluator of the suite or the run;
        `key=value` is a setting of all test sets in `sets`
    """
    for_evaluators: list[str] = []
    for_sets: list[Data] = []
    for text in overrides:
        data = parse_override(text)
        if "evaluators" in data:
            for_evaluators.append(text)
        else:
            for_sets.append(data)
    if for_sets and not sets:
        raise UserError(
            f"{next(iter(for_sets[0]))}= is a setting of test sets that are named by --set; "
            "that of an evaluator of a suite or a run is evaluators.NAME.KEY=VALUE"
        )
    if for_evaluators and sets and suite is None:  # --set alone replaces the run's evaluators
        raise UserError(
            "evaluators.NAME.KEY=VALUE changes an evaluator of a suite or a run; "
            "a setting of the test sets of --set is KEY=VALUE"
        )
    chosen: dict[str, Any] = {}
    for name, folder in named_sets(sets).items():
        chosen[name] = evaluator_for(folder, for_sets)
    run_file = config_of_run(model)
    if suite is not None:
        of_suite = evaluators_of_suite(suite, for_evaluators)
        if repeated := chosen.keys() & of_suite.keys():
            raise UserError(
                f"--set and --suite both have a test set named {', '.join(sorted(repeated))}; "
                "leave one out"
            )
        chosen |= of_suite
    if chosen:
        data = None
        if run_file is not None and any(map(uses_held_out, chosen.values())):
            data = load(TrainConfig, run_file).data
        return with_held_out(chosen, data)

    if run_file is None:
        raise UserError(
            f"{model} has no config.yaml with evaluators; name a test set with --set, "
            "or several with --suite"
        )
    config = load(TrainConfig, run_file, for_evaluators)
    if not config.evaluators:
        raise UserError(f"the run {run_file.parent} has no evaluators; name a test set with --set")
    return with_held_out(config.evaluators, config.data)


def config_of_run(model: str) -> Path | None:
    """The config.yaml of a model that is a run, or a checkpoint in the folder of one."""
    for folder in (Path(model), Path(model).parent.parent):
        if (folder / "config.yaml").exists():
            return folder / "config.yaml"
    return None


def evaluators_of_suite(suite: Path, overrides: Sequence[str]) -> Mapping[str, Any]:
    """The evaluators of a suite, or of the config of a run, whose corpus `held_out` is a part of.
    Raises UserError."""
    data = read(suite, overrides)
    if "run_dir" not in data:
        return build(Suite, data, where=str(suite)).evaluators
    config = build(TrainConfig, data, where=str(suite))
    return with_held_out(config.evaluators, config.data)


def named_sets(folders: Sequence[Path]) -> dict[str, Path]:
    """Name -> folder. The name is the last part of the path, or as many parts as the sets need to
    differ. Raises UserError for a folder that is given twice."""
    resolved = [folder.resolve() for folder in folders]
    names = {}
    for number, folder in enumerate(resolved):
        if resolved.count(folder) > 1:
            raise UserError(f"--set {folder} is given twice")
        tails: list[str] = []
        for num_parts in range(1, len(folder.parts) + 1):
            tails = ["-".join(other.parts[-num_parts:]).lstrip("/-") for other in resolved]
            if tails.count(tails[number]) == 1:
                break
        names[tails[number]] = folder
    return names


def print_table(title: str, results: Mapping[str, Result]) -> None:
    """One row for each metric of each set, with its 95 % interval."""
    table = Table("set", "samples", "metric", "value", "95 % interval", title=title)
    alarms = []
    for name, result in results.items():
        num_clusters = result.metrics.get("num_clusters")
        first_cells = (name, _samples_cell(result.metrics["num_samples"], num_clusters))
        for metric, value in result.metrics.items():
            if metric.startswith("num_"):
                continue
            interval = ""
            if metric in result.intervals:
                low, high = result.intervals[metric]
                interval = f"{_cell(metric, low)} to {_cell(metric, high)}"
            table.add_row(*first_cells, metric, _cell(metric, value), interval)
            first_cells = ("", "")  # a set is named in its first row
        table.add_section()
        for alarm in result.alarms:
            alarms.append(f"{name}: {alarm}")
    console = _console()
    console.print(table)
    for alarm in alarms:
        console.print(alarm, markup=False)  # keys in it may contain [brackets]


def print_comparison(differences: Sequence[Difference]) -> None:
    table = Table("set", "metric", "samples", "A", "B", "B - A (95 %)", "p", "verdict")
    for one in differences:
        verdict = "not distinguishable"
        if one.distinguishable:
            verdict = "B is higher" if one.second > one.first else "A is higher"
        change = f"{one.second - one.first:+.2%}"
        if one.low is not None and one.high is not None:
            change += f" ({one.low:+.2%} to {one.high:+.2%})"
        values = (f"{one.first:.2%}", f"{one.second:.2%}", change, f"{one.p:.2g}")
        samples = _samples_cell(one.num_samples, one.num_clusters)
        table.add_row(one.set, one.metric, samples, *values, verdict)
    _console().print(table)


def _console() -> Console:
    console = make_console(highlight=False)
    # Without a terminal rich assumes 80 columns, in which it wraps the metrics' names.
    return console if console.is_terminal else make_console(highlight=False, width=WIDTH)


def _samples_cell(num_samples: float, num_clusters: float | None) -> str:
    text = f"{int(num_samples):,}"
    return text if num_clusters is None else f"{text} in {int(num_clusters):,} clusters"


def _cell(metric: str, value: float) -> str:
    """Rates in percent."""
    return f"{value:.2%}" if is_rate(metric) else f"{value:.4g}"
