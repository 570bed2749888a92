"""A step that cannot be done is left out, count_outcome, and in the end names its samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stepping import CPU, batch, model, stepper
from torch import Tensor

from clipx.checkpoints.format import TrainState
from clipx.distributed.runtime import start
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.training.precision import LossScaler
from clipx.training.skipped_steps import count_outcome, memory_gib, report_nonfinite
from clipx.training.step import Outcome, StepResult
from clipx.types import Batch, Loss, LossOutput, UserError


def spoil(image: Tensor) -> Tensor:
    """The pictures of rows 2 and 4, which are white, become NaN."""
    white = image.flatten(1).amin(1) == 255
    return torch.where(white[:, None, None, None], torch.nan, image.float() / 255)


def rows() -> Batch:
    out = batch()
    out.views["image"][[2, 4]] = 255
    return out


class Cursed(Loss):
    """A loss of finite features whose value, or whose gradient alone, is not finite."""

    def __init__(self, *, loss: bool) -> None:
        self.spoils_loss = loss

    def __call__(self, image: Tensor, text: Tensor, **other: Any) -> LossOutput:
        out = InfoNCE()(image, text, **other)
        if self.spoils_loss:
            return LossOutput(out.loss * torch.inf, out.metrics)
        return LossOutput(out.loss + (0 * image).abs().sum().sqrt(), out.metrics)


def weights(encoder: DualEncoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize(
    ("settings", "bad_rows"),
    [
        ({"normalize": spoil}, [2, 4]),
        ({"loss": Cursed(loss=True)}, []),
        ({"loss": Cursed(loss=False)}, []),
    ],
    ids=["features", "loss", "gradient"],
)
def test_a_step_without_finite_numbers_changes_nothing(
    settings: dict[str, Any], bad_rows: list[int], size: int | None
) -> None:
    encoder = model()
    optimizer = build_optimizer(encoder, OptimConfig(lr=1e-3))
    stepper(encoder, optimizer)(batch())  # so that there are moments
    before, moments = weights(encoder), optimizer.state_dict()["state"][0]["exp_avg"].clone()
    stepped = stepper(encoder, optimizer, micro_batch_size=size, **settings)(rows())
    assert (stepped.outcome, stepped.bad_rows) == ("nonfinite", bad_rows)
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moments)
    assert all(p.grad is None for p in encoder.parameters())
    after = stepper(encoder, optimizer, micro_batch_size=size)(batch())
    assert after.outcome == "updated", "the next step is as if it had not been"


def test_an_overflow_of_float16_halves_the_factor_and_is_no_fault() -> None:
    encoder = model()
    scaler = LossScaler(2.0**60)  # float16 ends at 65,504
    optimizer = build_optimizer(encoder, OptimConfig())
    step = stepper(encoder, optimizer, dtype=torch.float16, scaler=scaler)
    before, outcomes = weights(encoder), []
    while not outcomes or outcomes[-1] == "overflow":
        outcomes.append(step(batch()).outcome)
        if outcomes[-1] == "overflow":
            assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())
    assert outcomes[-1] == "updated"
    assert 20 < len(outcomes) < 60
    assert scaler.factor == 2.0 ** (60 - len(outcomes) + 1)


def test_a_factor_below_1_does_not_excuse_an_overflow() -> None:
    """A gradient that is not finite at any scale would halve it for ever."""
    encoder = model()
    optimizer = build_optimizer(encoder, OptimConfig())
    scaler = LossScaler(4.0)
    step = stepper(encoder, optimizer, dtype=torch.float16, scaler=scaler, loss=Cursed(loss=False))
    outcomes = [step(batch()).outcome for _ in range(5)]
    assert outcomes == ["overflow"] * 3 + ["nonfinite"] * 2


def test_a_nonfinite_loss_does_not_shrink_the_factor() -> None:
    encoder, scaler = model(), LossScaler(64.0)
    optimizer = build_optimizer(encoder, OptimConfig())
    settings: dict[str, Any] = {"dtype": torch.float16, "scaler": scaler, "normalize": spoil}
    assert stepper(encoder, optimizer, **settings)(rows()).outcome == "nonfinite"
    assert scaler.factor == 64


def test_the_factor_doubles_after_enough_good_steps_and_is_remembered() -> None:
    scaler = LossScaler(8.0, grow_after=3)
    for _ in range(2):
        scaler.update(overflowed=False)
    again = LossScaler(grow_after=3)
    again.load_state_dict(scaler.state_dict())
    for one in (scaler, again):
        one.update(overflowed=False)
        assert one.factor == 16
        one.update(overflowed=True)
        assert one.factor == 8


def test_counts_tell_overflows_from_faults() -> None:
    outcomes: list[Outcome] = ["nonfinite", "overflow", "nonfinite", "updated", "overflow"]
    state, rows = TrainState(), []
    for outcome in outcomes:
        state = count_outcome(state, outcome)
        rows.append((state.skipped_steps, state.overflowed_steps, state.nonfinite_in_a_row))
    assert rows == [(1, 0, 1), (1, 1, 1), (2, 1, 2), (2, 1, 0), (2, 2, 0)]


def stepped(bad_rows: list[int]) -> StepResult:
    return StepResult({}, "nonfinite", bad_rows)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "nonfinite.jsonl").read_text().splitlines()]


def test_every_skipped_step_is_written_down_and_the_last_one_stops_the_run(tmp_path: Path) -> None:
    runtime, many = start("cpu"), batch(40)
    state = TrainState(step=7, nonfinite_in_a_row=1)
    report_nonfinite(runtime, tmp_path, state, many, stepped([3, 5]), limit=2)
    state = TrainState(step=8, nonfinite_in_a_row=2)
    with pytest.raises(UserError, match="step 8: 2 steps in a row") as error:
        report_nonfinite(runtime, tmp_path, state, many, stepped([3, 5]), limit=2)
    assert "on rank 0 features are not finite for k3, k5." in str(error.value)
    assert str(tmp_path / "nonfinite.jsonl") in str(error.value)
    expected = {"rank": 0, "features": True, "keys": ["k3", "k5"]}
    assert lines(tmp_path) == [{"step": 7} | expected, {"step": 8} | expected]


def test_where_no_sample_can_be_told_all_of_the_batch_are_named(tmp_path: Path) -> None:
    state = TrainState(step=8, nonfinite_in_a_row=1)
    with pytest.raises(UserError, match=r"k0, .*, k15 and 24 more\. All are in"):
        report_nonfinite(start("cpu"), tmp_path, state, batch(40), stepped([]), limit=1)
    (written,) = lines(tmp_path)
    assert written["keys"] == [f"k{n}" for n in range(40)]
    assert not written["features"]


def test_memory_is_that_of_this_process() -> None:
    assert 0.1 < memory_gib(CPU) < 10, "a process with torch, in GiB"
