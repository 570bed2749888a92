"""Evaluators by name; in training, one that fails does not end the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from clipx.engine.evaluate import evaluate, evaluate_in_training
from clipx.types import UserError


@dataclass
class Fixed:
    """An evaluator and its config: gives `value`, or raises it."""

    value: float | Exception

    def build(self) -> Fixed:
        return self

    def evaluate(self, encoder: Any) -> dict[str, float]:
        if isinstance(self.value, Exception):
            raise self.value
        return {"top1": self.value, "num_samples": 2}


SETS = {
    "a": Fixed(0.5),
    "user": Fixed(UserError("no such set")),
    "ours": Fixed(ZeroDivisionError("of ours")),
    "b": Fixed(0.25),
}
GOOD = {"a-top1": 0.5, "a-num_samples": 2, "b-top1": 0.25, "b-num_samples": 2}


def test_results_are_named_by_their_set() -> None:
    assert evaluate(None, {"a": SETS["a"], "b": SETS["b"]}) == GOOD  # type: ignore[arg-type]


def test_from_the_command_line_a_fault_is_raised() -> None:
    with pytest.raises(UserError, match="no such set"):
        evaluate(None, SETS)  # type: ignore[arg-type]


def test_in_training_a_fault_is_told_and_the_others_go_on() -> None:
    said: list[str] = []
    assert evaluate_in_training(None, SETS, said.append) == GOOD  # type: ignore[arg-type]
    assert said[0] == "evaluator user failed, training goes on: no such set"
    assert said[1].startswith("evaluator ours failed, training goes on:\nTraceback")
    assert "ZeroDivisionError: of ours" in said[1]
    assert len(said) == 2
