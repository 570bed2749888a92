"""Evaluators by name, in training and from the command line."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipx.config import Data, build, merge
from clipx.evaluators import retrieval, zero_shot
from clipx.evaluators._ranks import Known, alike
from clipx.evaluators._sets import is_classification
from clipx.evaluators._undecodable import with_undecodable
from clipx.types import Encoder, Result, Setting, UserError


def evaluate(
    encoder: Encoder, evaluators: Mapping[str, Any], setting: Setting | None = None
) -> dict[str, Result]:
    """What each evaluator found, by its name. The first that fails on any rank raises on all.

    evaluators: name -> Config with `build()`
    """
    setting, results = setting or Setting(), {}
    for name, config in evaluators.items():

        def run(config: Any = config) -> Result:
            own = replace(setting, undecodable={})
            return with_undecodable(config.build().evaluate(encoder, own), own)

        results[name] = alike(setting.ranks, run)
    return results


def evaluate_each(
    encoder: Encoder, evaluators: Mapping[str, Any], setting: Setting
) -> tuple[dict[str, Result], list[str]]:
    """(results, faults of the user by which evaluators have failed). One that fails does not end
    the others. All ranks take part."""
    results: dict[str, Result] = {}
    faults: list[str] = []
    for name, config in evaluators.items():
        try:
            results |= evaluate(encoder, {name: config}, setting)
        except UserError as error:
            faults.append(f"evaluator {name} failed: {error}")
    return results, faults


def faults_of(evaluators: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files and settings of evaluators, all of it at once: each is built,
    which reads its paths, splits, templates and class lists, and no image."""
    faults = []
    for name, config in evaluators.items():
        try:
            config.build()
        except (UserError, OSError) as error:
            faults.append(f"evaluators.{name}: {error}")
    return faults


def evaluate_in_training(
    encoder: Encoder,
    evaluators: Mapping[str, Any],
    setting: Setting,
    say: Callable[[str], None],
) -> dict[str, Result]:
    """The same, but an evaluator that fails is reported and left out: training is worth more than
    one number. All ranks take part, and no random state changes."""
    results: dict[str, Result] = {}
    with unchanged_random_state(setting.device):
        for name, config in evaluators.items():
            try:
                results |= evaluate(encoder, {name: config}, setting)
            except UserError as error:
                say(f"evaluator {name} failed, training goes on: {error}")
            except Exception as error:
                if setting.ranks.world_size > 1 and not isinstance(error, Known):
                    raise  # a peer is gone
                say(f"evaluator {name} failed, training goes on:\n{traceback.format_exc()}")
    return results


@contextmanager
def unchanged_random_state(device: torch.device | str) -> Iterator[None]:
    """Python's, NumPy's and torch's generators end as they began."""
    python, numpy = random.getstate(), np.random.get_state()
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def flat(results: Mapping[str, Result]) -> dict[str, float]:
    """`<set>-<metric>` -> value, over all sets."""
    return {f"{n}-{k}": v for n, result in results.items() for k, v in result.metrics.items()}


def evaluator_for(path: Path, settings: Sequence[Data] = ()) -> zero_shot.Config | retrieval.Config:
    """Choose by a test set's files: classes make it zero-shot classification, captions retrieval.
    Raises UserError.

    settings: of the evaluator, such as {"templates": "openai"}
    """
    kind = zero_shot.Config if is_classification(path) else retrieval.Config
    data: Data = {"path": str(path)}
    for setting in settings:
        data = merge(data, setting)
    return build(kind, data, where=f"of the test set {path}")
