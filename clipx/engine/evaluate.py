"""Evaluators by name, in training and from the command line."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipx.evaluators import retrieval, zero_shot
from clipx.evaluators._sets import is_classification
from clipx.types import Encoder, UserError


def evaluate(encoder: Encoder, evaluators: Mapping[str, Any]) -> dict[str, float]:
    """`<name>-<metric>` -> value, over all evaluators. The first that fails raises.

    evaluators: name -> Config with `build()`
    """
    results: dict[str, float] = {}
    for name, config in evaluators.items():
        results |= {f"{name}-{k}": v for k, v in config.build().evaluate(encoder).items()}
    return results


def evaluate_in_training(
    encoder: Encoder, evaluators: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, float]:
    """The same, but an evaluator that fails is reported and left out: training is worth more than
    one number."""
    results: dict[str, float] = {}
    for name, config in evaluators.items():
        try:
            results |= evaluate(encoder, {name: config})
        except UserError as error:
            say(f"evaluator {name} failed, training goes on: {error}")
        except Exception:  # noqa: BLE001 reported in full
            say(f"evaluator {name} failed, training goes on:\n{traceback.format_exc()}")
    return results


def evaluator_for(path: Path) -> zero_shot.Config | retrieval.Config:
    """What a test set's files ask for: classes make it zero-shot classification, captions
    retrieval. Raises UserError."""
    if is_classification(path):
        return zero_shot.Config(path=str(path))
    return retrieval.Config(path=str(path))
