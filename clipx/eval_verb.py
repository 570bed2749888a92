"""`clipx eval`: the numbers of a trained model, a table for people, and a picture of what it
sees."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from clipx import embed
from clipx.config import Data, build, component, config, merge, parse_override, read_layers
from clipx.distributed.runtime import Runtime, start
from clipx.embed import Encoder
from clipx.evaluators import zero_shot
from clipx.evaluators._classes import classifier
from clipx.files import cache_folder
from clipx.training.config import TrainConfig
from clipx.training.evaluation import evaluate_each, evaluator_for, faults_of
from clipx.training.precision import PrecisionKind, build_precision
from clipx.types import Result, Setting, UserError
from clipx.viz.contact_sheet import Guess, contact_sheet


@config
class Suite:
    """A YAML file with test sets: `clipx eval MODEL --suite FILE key=value ...`"""

    evaluators: dict[str, component("clipx.evaluators")] = Field(min_length=1)  # type: ignore[valid-type]


@dataclass(frozen=True)
class Evaluation:
    """results: the same on all ranks; evaluators: those with a result; faults: why others have
    none"""

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
    device = runtime.device
    dtype = build_precision(precision, device).dtype  # which also sets TF32
    faults = faults_of(evaluators) if runtime.is_main and len(evaluators) > 1 else []
    runtime.agree("\n".join(faults) or None)
    encoder = runtime.main_first(
        lambda: embed.load(model, device=device, dtype=dtype, averaged=averaged)
    )
    setting = Setting(
        ranks=runtime,
        cache=classifier_folder(),
        progress=show_progress if runtime.is_main and sys.stderr.isatty() else _silent,
        device=device,
    )
    results, faults = evaluate_each(encoder, evaluators, setting)
    if faults and not results:
        raise UserError("\n".join(faults))
    done = {name: evaluators[name] for name in results}
    return Evaluation(encoder, done, results, faults, runtime)


def classifier_folder() -> Path:
    return cache_folder("classifiers")


def show_progress(done: int, total: int) -> None:
    print(f"\rimages {done:,}/{total:,}", end="\n" if done == total else "", file=sys.stderr)


def _silent(done: int, total: int) -> None:
    pass


def chosen_evaluators(
    model: str, sets: Sequence[Path], suite: Path | None, overrides: Sequence[str]
) -> Mapping[str, Any]:
    """The given test sets and suite, else those of the run's config. Raises UserError.

    overrides: `evaluators.NAME.key=value` changes an evaluator of the suite or the run;
    `key=value` is a setting of every test set in `sets`
    """
    parsed = [parse_override(text) for text in overrides]
    for_evaluators = [data for data in parsed if "evaluators" in data]
    for_sets = [data for data in parsed if "evaluators" not in data]
    if for_sets and not sets:
        raise UserError(
            f"{next(iter(for_sets[0]))}= is a setting of test sets that are named by --set; "
            "that of an evaluator of a suite or a run is evaluators.NAME.KEY=VALUE"
        )
    if for_evaluators and sets and suite is None:
        raise UserError(
            "evaluators.NAME.KEY=VALUE changes an evaluator of a suite or a run; "
            "a setting of the test sets of --set is KEY=VALUE"
        )
    chosen: dict[str, Any] = {
        name: evaluator_for(folder, for_sets) for name, folder in named_sets(sets).items()
    }
    if suite is not None:
        of_suite = build(Suite, _layers(suite, for_evaluators), where=str(suite)).evaluators
        if twice := set(chosen) & set(of_suite):
            raise UserError(
                f"--set and --suite both have a test set named {', '.join(sorted(twice))}; "
                "leave one out"
            )
        chosen |= of_suite
    return chosen or _evaluators_of_run(model, for_evaluators)


def named_sets(folders: Sequence[Path]) -> dict[str, Path]:
    """Name -> folder: the last part of the path, or as many as tell the sets apart. Raises
    UserError where a folder is given twice."""
    resolved = [folder.resolve() for folder in folders]
    for folder in resolved:
        if resolved.count(folder) > 1:
            raise UserError(f"--set {folder} is given twice")

    def name(folder: Path, num_parts: int) -> str:
        return "-".join(folder.parts[-num_parts:]).lstrip("/-")

    names = {}
    for folder in resolved:
        num_parts = 1
        while sum(name(other, num_parts) == name(folder, num_parts) for other in resolved) > 1:
            num_parts += 1
        names[name(folder, num_parts)] = folder
    return names


def _layers(path: Path, changes: Sequence[Data]) -> Data:
    data = read_layers(path)
    for change in changes:
        data = merge(data, change)
    return data


def _evaluators_of_run(model: str, changes: Sequence[Data]) -> Mapping[str, Any]:
    path = Path(model)
    folder = next((p for p in (path, path.parent.parent) if (p / "config.yaml").exists()), None)
    if folder is None:
        raise UserError(
            f"{model} has no config.yaml with evaluators; name a test set with --set, "
            "or several with --suite"
        )
    file = folder / "config.yaml"
    evaluators = build(TrainConfig, _layers(file, changes), where=str(file)).evaluators
    if not evaluators:
        raise UserError(f"the run {folder} has no evaluators; name a test set with --set")
    return evaluators


def print_table(title: str, results: Mapping[str, Result]) -> None:
    """One row for each metric of each set, with its 95 % interval."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # a log file does not wrap
    table = Table("set", "samples", "metric", "value", "95 % interval", title=title)
    for name, result in results.items():
        first = (name, f"{int(result.metrics['num_samples']):,}")
        for metric, value in result.metrics.items():
            if metric.startswith("num_"):
                continue
            interval = result.intervals.get(metric)
            shown = " to ".join(_cell(metric, v) for v in interval) if interval else ""
            table.add_row(*first, metric, _cell(metric, value), shown)
            first = ("", "")
        table.add_section()
    console.print(table)
    for name, result in results.items():
        for alarm in result.alarms:
            console.print(f"{name}: {alarm}", markup=False)


def _cell(metric: str, value: float) -> str:
    """Rates in percent."""
    rates = ("top", "R@", "mAP", "recall", "ece", "accuracy", "share", "gap", "worst", "slice")
    return f"{value:.2%}" if any(word in metric for word in rates) else f"{value:.4g}"


def write_picture(
    encoder: Encoder, evaluators: Mapping[str, Any], out: Path, *, per_set: int = 12
) -> None:
    """Some images of each classification set with the model's three best guesses, as one PNG."""
    guesses: list[Guess] = []
    for name, chosen in evaluators.items():
        if isinstance(chosen, zero_shot.Config):
            guesses += guess(chosen.build(), encoder, name, per_set)
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(guesses, columns=per_set // 2).save(out)


def guess(evaluator: zero_shot.ZeroShot, encoder: Encoder, name: str, count: int) -> list[Guess]:
    """Evenly spaced images of a set: not chosen by how well they do."""
    labeled = evaluator.set
    weights = classifier(encoder, labeled.names, evaluator.templates)
    out = []
    for number in range(0, len(labeled), max(1, len(labeled) // count))[:count]:
        image = labeled.images.shown(number)
        probability = (encoder.logit_scale * encoder.encode_image(image) @ weights.T).softmax(-1)[0]
        best = probability.topk(min(3, len(labeled.names)))
        rows = [
            (labeled.names[int(i)], float(p))
            for p, i in zip(best.values, best.indices, strict=True)
        ]
        out.append(Guess(image, labeled.names[int(labeled.label[number])], rows, name))
    return out
