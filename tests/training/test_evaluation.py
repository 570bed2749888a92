"""Evaluators by name; in training, one that fails does not end the run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from clipx.training.evaluation import evaluate_each, evaluate_in_training, flat
from clipx.types import Result, Setting, StopRequested, UserError


@dataclass
class Fixed:
    """An evaluator and its config: gives `value`, or raises it."""

    value: float | Exception

    def build(self) -> Fixed:
        return self

    def evaluate(self, encoder: Any, setting: Setting) -> Result:
        random.random(), np.random.rand(), torch.rand(1)
        if isinstance(self.value, Exception):
            raise self.value
        return Result({"top1": self.value, "num_samples": 2})


SETS = {
    "a": Fixed(0.5),
    "user": Fixed(UserError("no such set")),
    "broken": Fixed(ZeroDivisionError("in clipx")),
    "b": Fixed(0.25),
}
GOOD = {"a-top1": 0.5, "a-num_samples": 2, "b-top1": 0.25, "b-num_samples": 2}


ENCODER: Any = None


def test_a_failure_of_clipx_ends_a_command_with_its_own_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="in clipx"):
        evaluate_each(ENCODER, SETS, Setting())


def test_a_fault_of_the_user_does_not_end_the_other_evaluators() -> None:
    sets = {name: SETS[name] for name in ("a", "user", "b")}
    results, faults = evaluate_each(ENCODER, sets, Setting())
    assert flat(results) == GOOD
    assert faults == ["evaluator user failed: no such set"]


def test_in_training_a_failure_is_printed_and_the_others_go_on() -> None:
    messages: list[str] = []
    assert flat(evaluate_in_training(ENCODER, SETS, Setting(), messages.append)) == GOOD
    assert messages[0] == "evaluator user failed, training goes on: no such set"
    assert messages[1].startswith("evaluator broken failed, training goes on:\nTraceback")
    assert "ZeroDivisionError: in clipx" in messages[1]
    assert len(messages) == 2


def test_a_request_to_stop_ends_all_evaluators() -> None:
    setting = Setting(stop_reason=lambda: "SIGTERM")
    with pytest.raises(StopRequested, match="SIGTERM"):
        evaluate_in_training(ENCODER, SETS, setting, lambda text: None)


def drawn() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_random_states_are_as_before_also_after_a_fault() -> None:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    evaluate_in_training(ENCODER, SETS, Setting(), lambda text: None)
    assert drawn() == expected
