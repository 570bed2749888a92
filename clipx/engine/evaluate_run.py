"""`clipx eval`: the numbers of a trained model, a table for people, and a picture of what it
sees."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from clipx import embed
from clipx.config import component, config, load
from clipx.distributed.runtime import Runtime, start
from clipx.embed import Encoder
from clipx.engine.config import TrainConfig
from clipx.engine.evaluate import evaluate_each, evaluator_for, faults_of
from clipx.engine.precision import PrecisionKind, compute_dtype
from clipx.evaluators import zero_shot
from clipx.evaluators._classes import classifier
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
) -> Evaluation:
    """Evaluate on all ranks that the launcher has started. Raises UserError.

    averaged: as for `embed.load`
    """
    evaluators = chosen_evaluators(model, sets, suite, overrides)
    runtime = start("auto")
    device = runtime.device
    faults = faults_of(evaluators) if runtime.is_main and len(evaluators) > 1 else []
    runtime.agree("\n".join(faults) or None)
    encoder = runtime.main_first(
        lambda: embed.load(
            model, device=device, dtype=compute_dtype(precision, device), averaged=averaged
        )
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
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "clipx" / "classifiers"


def show_progress(done: int, total: int) -> None:
    print(f"\rimages {done:,}/{total:,}", end="\n" if done == total else "", file=sys.stderr)


def _silent(done: int, total: int) -> None:
    pass


def chosen_evaluators(
    model: str, sets: Sequence[Path], suite: Path | None, overrides: Sequence[str]
) -> Mapping[str, Any]:
    """The given test sets and suite, else those of the run's config. Raises UserError."""
    chosen = {folder.resolve().name: evaluator_for(folder) for folder in sets}
    if suite is not None:
        chosen |= load(Suite, suite, overrides).evaluators
    if chosen:
        return chosen
    path = Path(model)
    folder = next((p for p in (path, path.parent.parent) if (p / "config.yaml").exists()), None)
    if folder is None:
        raise UserError(
            f"{model} has no config.yaml with evaluators; name a test set with --set, "
            "or several with --suite"
        )
    run_config = load(TrainConfig, folder / "config.yaml")
    if not run_config.evaluators:
        raise UserError(f"the run {folder} has no evaluators; name a test set with --set")
    return run_config.evaluators


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
    if not guesses:
        raise UserError("no classification set among the test sets, so there is nothing to draw")
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(guesses, columns=per_set // 2).save(out)


def guess(evaluator: zero_shot.ZeroShot, encoder: Encoder, name: str, count: int) -> list[Guess]:
    """Evenly spaced images of a set: not chosen by how well they do."""
    labeled = evaluator.set
    weights = classifier(encoder, labeled.names, evaluator.templates)
    out = []
    for number in range(0, len(labeled), max(1, len(labeled) // count))[:count]:
        image = labeled.images.image(number)
        probability = (encoder.logit_scale * encoder.encode_image(image) @ weights.T).softmax(-1)[0]
        best = probability.topk(min(3, len(labeled.names)))
        rows = [
            (labeled.names[int(i)], float(p))
            for p, i in zip(best.values, best.indices, strict=True)
        ]
        out.append(Guess(image, labeled.names[int(labeled.label[number])], rows, name))
    return out
