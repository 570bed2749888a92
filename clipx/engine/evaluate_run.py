"""`clipx eval`: the numbers of a trained run, a table for people, and a picture of what the model
sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from clipx import checkpoints
from clipx.checkpoints import TrainState
from clipx.config import build
from clipx.embed import Encoder
from clipx.engine.config import TrainConfig
from clipx.engine.evaluate import evaluator_for
from clipx.engine.precision import compute_dtype
from clipx.evaluators import zero_shot
from clipx.metrics import wilson_interval
from clipx.types import UserError
from clipx.viz.contact_sheet import Guess, contact_sheet


def load_run(path: Path, *, averaged: bool = True) -> tuple[Encoder, TrainState]:
    """The model of a run's newest checkpoint, or of a checkpoint, and where its training was.

    averaged: as for `checkpoints.load_model`
    """
    model, model_json, state = checkpoints.load_model(path, averaged=averaged)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Encoder(model, model_json, device=device, dtype=compute_dtype("auto", device))
    return encoder, state


def chosen_evaluators(path: Path, sets: list[Path] | None) -> dict[str, Any]:
    """The given test sets, else those of the run's config. Raises UserError."""
    if sets:
        return {folder.resolve().name: evaluator_for(folder) for folder in sets}
    folder = next((p for p in (path, path.parent.parent) if (p / "config.yaml").exists()), None)
    if folder is None:
        raise UserError(f"{path} has no config.yaml with evaluators; name a test set with --set")
    config = build(
        TrainConfig,
        yaml.safe_load((folder / "config.yaml").read_text()),
        where=str(folder / "config.yaml"),
    )
    if not config.evaluators:
        raise UserError(f"the run {folder} has no evaluators; name a test set with --set")
    return config.evaluators


def print_table(results: dict[str, Any]) -> None:
    """One row for each test set; rates with 95 % intervals over its samples."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # a log file does not wrap
    title = f"step {results['step']}, {results['samples_seen']:,} samples seen"
    columns = ("set", "samples", "top-1", "top-5", "image to text R@1", "text to image R@1")
    table = Table(*columns, title=title)
    for name in [
        key.removesuffix("-num_samples") for key in results if key.endswith("-num_samples")
    ]:
        count = int(results[f"{name}-num_samples"])
        metrics = ("zeroshot-top1", "zeroshot-top5", "image_to_text_R@1", "text_to_image_R@1")
        table.add_row(
            name, f"{count:,}", *(_cell(results.get(f"{name}-{m}"), count) for m in metrics)
        )
    console.print(table)


def _cell(rate: float | None, count: int) -> str:
    if rate is None:
        return ""
    low, high = wilson_interval(rate, count)
    return f"{rate:.1%} ({low:.1%} to {high:.1%})"


def write_picture(
    encoder: Encoder, evaluators: dict[str, Any], out: Path, *, per_set: int = 12
) -> None:
    """Some images of each classification set with the model's three best guesses, as one PNG."""
    guesses: list[Guess] = []
    for name, config in evaluators.items():
        if isinstance(config, zero_shot.Config):
            guesses += guess(config.build(), encoder, name, per_set)
    if not guesses:
        raise UserError("no classification set among the test sets, so there is nothing to draw")
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(guesses, columns=per_set // 2).save(out)


def guess(evaluator: zero_shot.ZeroShot, encoder: Encoder, name: str, count: int) -> list[Guess]:
    """Evenly spaced images of a set: not chosen by how well they do."""
    weights = zero_shot.classifier(encoder, evaluator.class_names, evaluator.templates)
    samples = list(evaluator.samples())
    out = []
    for image, label in samples[:: max(1, len(samples) // count)][:count]:
        probability = (encoder.logit_scale * encoder.encode_image(image) @ weights.T).softmax(-1)[0]
        best = probability.topk(3)
        rows = [
            (evaluator.class_names[i], float(p))
            for p, i in zip(best.values, best.indices, strict=True)
        ]
        out.append(Guess(image, evaluator.class_names[label], rows, name))
    return out
