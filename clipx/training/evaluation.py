"""Evaluators by name, in training and from the command line."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipx.config import Data, build, merge
from clipx.evaluators import retrieval, zero_shot
from clipx.evaluators.distributed import Agreed, run_evaluator
from clipx.evaluators.test_sets import is_classification
from clipx.types import ImageTextEncoder, Result, Setting, StopRequested, UserError


def evaluate_each(
    encoder: ImageTextEncoder, evaluators: Mapping[str, Any], setting: Setting
) -> tuple[dict[str, Result], list[str]]:
    """(results, errors of the user in the others): one that fails does not end the others."""
    results: dict[str, Result] = {}
    errors: list[str] = []
    for name, config in evaluators.items():
        try:
            results[name] = run_evaluator(config, encoder, setting)
        except UserError as error:
            errors.append(f"evaluator {name} failed: {error}")
    return results, errors


def evaluate_in_training(
    encoder: ImageTextEncoder,
    evaluators: Mapping[str, Any],
    setting: Setting,
    print_message: Callable[[str], None],
) -> dict[str, Result]:
    """The results of the evaluators that do not fail, since a run is worth more than one number.
    All ranks take part, and no random state changes. Raises StopRequested on all ranks if one has
    to stop."""
    results: dict[str, Result] = {}
    with unchanged_random_state(setting.device):
        for name, config in evaluators.items():
            try:
                results[name] = run_evaluator(config, encoder, setting)
            except StopRequested:
                raise
            except UserError as error:
                print_message(f"evaluator {name} failed, training goes on: {error}")
            except Exception as error:
                # Several ranks agree on a failure. Any other exception comes from the collective
                # itself: a rank is gone, and training cannot go on.
                if setting.ranks.world_size > 1 and not isinstance(error, Agreed):
                    raise
                trace = traceback.format_exc()
                print_message(f"evaluator {name} failed, training goes on:\n{trace}")
    return results


@contextmanager
def unchanged_random_state(device: torch.device | str) -> Iterator[None]:
    """Restore the generators of Python, NumPy and torch at the end."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    device = torch.device(device)
    # Evaluators shuffle and resample. A run must be the same with them and without.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def faults_of(evaluators: Mapping[str, Any]) -> list[str]:
    """The errors in files and settings of all evaluators. Each is built, which reads its paths,
    splits, templates and class lists, and no image."""
    errors = []
    for name, config in evaluators.items():
        try:
            config.build()
        except (UserError, OSError) as error:
            errors.append(f"evaluators.{name}: {error}")
    return errors


def flat(results: Mapping[str, Result]) -> dict[str, float]:
    """`<set>-<metric>` -> value, over all sets."""
    values = {}
    for name, result in results.items():
        for metric, value in result.metrics.items():
            values[f"{name}-{metric}"] = value
    return values


def evaluator_for(path: Path, settings: Sequence[Data] = ()) -> zero_shot.Config | retrieval.Config:
    """Choose by a test set's files: zero-shot classification for classes, retrieval for captions.
    Raises UserError.

    settings: of the evaluator, such as {"templates": "openai"}
    """
    kind = zero_shot.Config if is_classification(path) else retrieval.Config
    data: Data = {"path": str(path)}
    for setting in settings:
        data = merge(data, setting)
    return build(kind, data, where=f"of the test set {path}")


def results_line(step: int, values: Mapping[str, float]) -> str:
    """The headline metrics of an evaluation; the others are in results.jsonl."""
    shown = [f"step {step}"]
    for name, value in values.items():
        if name.endswith(("top1", "R@1")):
            shown.append(f"{name} {value:.2%}")
        elif name.endswith("-loss"):
            shown.append(f"{name} {value:.4f}")
    return "  ".join(shown)
