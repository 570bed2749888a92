"""`clipx eval` and `clipx compare`: tables for people, and a picture of a model's guesses."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from clipx import embed
from clipx.config import Data, build, component, config, merge, parse_override, read_layers
from clipx.contact_sheet import Guess, contact_sheet
from clipx.distributed.runtime import Runtime, start
from clipx.embed import Encoder
from clipx.evaluators import zero_shot
from clipx.evaluators.classifier import classifier
from clipx.evaluators.test_sets import evenly_spaced
from clipx.files import cache_folder
from clipx.results import Difference
from clipx.training.config import TrainConfig
from clipx.training.evaluation import evaluate_each, evaluator_for, faults_of
from clipx.training.precision import PrecisionKind, build_precision
from clipx.types import Result, Setting, UserError

GUESSES = 12  # images of each set in the picture
WIDTH = 140  # of tables in a log file, which has no terminal to fit
RATES = ("top", "R@", "mAP", "recall", "ece", "accuracy", "share", "gap", "worst", "slice")


@config
class Suite:
    """A YAML file with test sets: `clipx eval MODEL --suite FILE key=value ...`"""

    evaluators: dict[str, component("clipx.evaluators")] = Field(min_length=1)  # type: ignore[valid-type]


@dataclass(frozen=True)
class Evaluation:
    """results: the same on all ranks; evaluators: those with a result; faults: errors of others"""

    encoder: Encoder
    evaluators: Mapping[str, Any]
    results: dict[str, Result]
    faults: list[str]
    runtime: Runtime


def run(
    model: str,
    *,
    sets: Sequence[Path] = (),
    suite: Path | None = None,
    overrides: Sequence[str] = (),
    precision: PrecisionKind = "auto",
    averaged: bool = True,
    picture: bool = False,
) -> Evaluation:
    """Evaluate on all ranks that the launcher has started. Raises UserError.

    averaged: as for `embed.load`
    picture: `write_picture` will be called, which needs a classification set
    """
    evaluators = chosen_evaluators(model, sets, suite, overrides)
    if picture and not any(isinstance(e, zero_shot.Config) for e in evaluators.values()):
        raise UserError("no classification set among the test sets, so there is nothing to draw")
    runtime = start("auto")
    dtype = build_precision(precision, runtime.device).dtype  # sets TF32 too
    # Report all sets that cannot be read before minutes of embedding; a single one fails by itself.
    faults = faults_of(evaluators) if runtime.is_main and len(evaluators) > 1 else []
    runtime.agree("\n".join(faults) or None)
    encoder = runtime.main_first(
        lambda: embed.load(model, device=runtime.device, dtype=dtype, averaged=averaged)
    )
    setting = Setting(ranks=runtime, cache=classifier_folder(), device=runtime.device)
    if runtime.is_main and sys.stderr.isatty():
        setting = replace(setting, progress=show_progress)
    results, faults = evaluate_each(encoder, evaluators, setting)
    if faults and not results:
        raise UserError("\n".join(faults))
    return Evaluation(encoder, {n: evaluators[n] for n in results}, results, faults, runtime)


def classifier_folder() -> Path:
    return cache_folder("classifiers")


def show_progress(done: int, total: int) -> None:
    print(f"\rimages {done:,}/{total:,}", end="\n" if done == total else "", file=sys.stderr)


def chosen_evaluators(
    model: str, sets: Sequence[Path], suite: Path | None, overrides: Sequence[str]
) -> Mapping[str, Any]:
    """The given test sets and suite, else the evaluators of the run's config. Raises UserError.

    overrides: `evaluators.NAME.key=value` changes an evaluator of the suite or the run;
        `key=value` is a setting of all test sets in `sets`
    """
    for_evaluators = []
    for_sets = []
    for text in overrides:
        data = parse_override(text)
        if "evaluators" in data:
            for_evaluators.append(data)
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
    if suite is not None:
        of_suite = build(Suite, _layers(suite, for_evaluators), where=str(suite)).evaluators
        if repeated := set(chosen) & set(of_suite):
            raise UserError(
                f"--set and --suite both have a test set named {', '.join(sorted(repeated))}; "
                "leave one out"
            )
        chosen |= of_suite
    # Without --set and --suite, the model must be a run that has evaluators.
    return chosen or _evaluators_of_run(model, for_evaluators)


def named_sets(folders: Sequence[Path]) -> dict[str, Path]:
    """Name -> folder. The name is the last part of the path, or as many parts as the sets need to
    differ. Raises UserError for a folder that is given twice."""
    resolved = [folder.resolve() for folder in folders]
    for folder in resolved:
        if resolved.count(folder) > 1:
            raise UserError(f"--set {folder} is given twice")

    def name(folder: Path, num_parts: int) -> str:
        return "-".join(folder.parts[-num_parts:]).lstrip("/-")

    names = {}
    for folder in resolved:
        num_parts = 1  # of the path, from its end
        while [name(other, num_parts) for other in resolved].count(name(folder, num_parts)) > 1:
            num_parts += 1
        names[name(folder, num_parts)] = folder
    return names


def _layers(path: Path, changes: Sequence[Data]) -> Data:
    data = read_layers(path)
    for change in changes:
        data = merge(data, change)
    return data


def _evaluators_of_run(model: str, changes: Sequence[Data]) -> Mapping[str, Any]:
    """model: a run, or a checkpoint in its folder"""
    path = Path(model)
    folder = path if (path / "config.yaml").exists() else path.parent.parent
    file = folder / "config.yaml"
    if not file.exists():
        raise UserError(
            f"{model} has no config.yaml with evaluators; name a test set with --set, "
            "or several with --suite"
        )
    evaluators = build(TrainConfig, _layers(file, changes), where=str(file)).evaluators
    if not evaluators:
        raise UserError(f"the run {folder} has no evaluators; name a test set with --set")
    return evaluators


def print_table(title: str, results: Mapping[str, Result]) -> None:
    """One row for each metric of each set, with its 95 % interval."""
    table = Table("set", "samples", "metric", "value", "95 % interval", title=title)
    alarms = []
    for name, result in results.items():
        first_cells = (name, f"{int(result.metrics['num_samples']):,}")
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
        alarms += [f"{name}: {alarm}" for alarm in result.alarms]
    console = _console()
    console.print(table)
    for alarm in alarms:
        console.print(alarm, markup=False)


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
        table.add_row(one.set, one.metric, f"{one.num_samples:,}", *values, verdict)
    _console().print(table)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def _cell(metric: str, value: float) -> str:
    """Rates in percent."""
    return f"{value:.2%}" if any(word in metric for word in RATES) else f"{value:.4g}"


def write_picture(encoder: Encoder, evaluators: Mapping[str, Any], out: Path) -> None:
    """Some images of each classification set with the model's three best guesses, as one PNG."""
    guesses: list[Guess] = []
    for name, evaluator in evaluators.items():
        if isinstance(evaluator, zero_shot.Config):
            guesses += guess(evaluator.build(), encoder, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(guesses, columns=GUESSES // 2).save(out)


def guess(evaluator: zero_shot.ZeroShot, encoder: Encoder, name: str) -> list[Guess]:
    """Guesses for evenly spaced images of a set, not chosen by how well the model does on them."""
    labeled = evaluator.set
    weights = classifier(encoder, labeled.names, evaluator.templates)
    guesses = []
    for number in evenly_spaced(len(labeled), GUESSES):
        image = labeled.images.shown(number)
        logits = encoder.logit_scale * encoder.encode_image(image)[0] @ weights.T
        probability = logits.softmax(-1)
        best = probability.argsort(descending=True)[:3].tolist()
        classes = [(labeled.names[number], float(probability[number])) for number in best]
        truth = labeled.names[int(labeled.label[number])]
        guesses.append(Guess(image, truth, classes, name))
    return guesses
