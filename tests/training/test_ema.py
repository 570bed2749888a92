"""The average of weights against closed forms, in one process. tests/distributed/
test_sharded_optim.py has shards."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipx.training.ema import Ema


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.to(dtype)


def set_all(model: nn.Module, value: Callable[[Tensor], Tensor]) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(value(tensor))


def averages(ema: Ema) -> dict[str, Tensor]:
    return {k: v for k, v in ema.state_dict().items() if v.is_floating_point()}


def test_constant_weights_are_their_own_average() -> None:
    model = Net()
    ema = Ema(model, 0.9)
    for _ in range(20):
        ema.update()
    for name, tensor in averages(ema).items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_weights_on_a_line_are_averaged_as_the_recursion_says(decay: float) -> None:
    """Weights t = 1, 2, ... from 0: with the decays d_t, the average is the sum over s of
    s (1 - d_s) d_(s+1) ... d_t; the float64 sum is the oracle."""
    model = Net()
    set_all(model, torch.zeros_like)
    ema = Ema(model, decay)
    used: list[float] = []
    for t in range(1, 31):
        set_all(model, lambda tensor, t=t: torch.full_like(tensor, t))
        ema.update()
        used.append(min(decay, t / (9 + t)))
        expected = 0.0
        for s in range(1, t + 1):
            weight = 1 - used[s - 1]
            for d in used[s:]:
                weight *= d
            expected += s * weight
        for tensor in averages(ema).values():
            torch.testing.assert_close(tensor, torch.full_like(tensor, expected))
    if decay == 0.9:  # the closed form of a long line: it lags by d / (1 - d) steps
        for t in range(31, 400):
            set_all(model, lambda tensor, t=t: torch.full_like(tensor, t))
            ema.update()
        for tensor in averages(ema).values():
            torch.testing.assert_close(tensor, torch.full_like(tensor, 399 - 9))


def test_everything_in_the_state_is_averaged_and_counters_are_copied() -> None:
    model = Net()
    ema = Ema(model, 0.5)
    assert set(ema.state_dict()) == {*model.state_dict(), "num_updates"}
    set_all(model, lambda tensor: tensor + 8)
    ema.update()
    state = ema.state_dict()
    assert state["norm.num_batches_tracked"] == 8
    assert state["norm.num_batches_tracked"].dtype == torch.int64
    assert state["num_updates"] == 1
    # the first update keeps a tenth of the start
    torch.testing.assert_close(state["logit_scale"], torch.tensor(2.0 + 0.9 * 8))
    torch.testing.assert_close(state["norm.running_mean"], torch.full((4,), 0.9 * 8))


def test_averages_of_16_bit_weights_have_32_bits() -> None:
    model = Net(torch.bfloat16)
    set_all(model, torch.ones_like)
    ema = Ema(model, 0.9999)
    ema.load_state_dict(ema.state_dict() | {"num_updates": torch.tensor(10**6)})
    set_all(model, lambda tensor: torch.full_like(tensor, 2))
    for _ in range(10):
        ema.update()
    for tensor in averages(ema).values():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, torch.full_like(tensor, 2 - 0.9999**10))
    with ema.applied():
        assert model.linear.weight.dtype == torch.bfloat16
        assert (model.linear.weight == 1).all()  # 1.001, rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inside_the_model_has_the_averages_and_afterwards_its_own_bits(dtype: torch.dtype) -> None:
    model = Net(dtype)
    ema = Ema(model, 0.5)
    set_all(model, lambda tensor: tensor * 3 + 1)
    ema.update()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())

    def evaluate() -> None:
        with ema.applied():
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, ema.state_dict()[name].to(tensor.dtype))
            assert not torch.equal(model.linear.weight, before["linear.weight"])
            raise KeyError("an evaluation that fails")

    with pytest.raises(KeyError, match="that fails"):
        evaluate()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_it_goes_on_from_its_state_with_the_same_bits() -> None:
    def walk(ema: Ema, model: nn.Module, start: int, stop: int) -> None:
        for t in range(start, stop):
            generator = torch.Generator().manual_seed(t)
            set_all(
                model,
                lambda x, g=generator: (
                    torch.randn(x.shape, generator=g) if x.is_floating_point() else x + 1
                ),
            )
            ema.update()

    model = Net()
    straight = Ema(model, 0.99)
    walk(straight, model, 0, 12)

    model = Net()
    first = Ema(model, 0.99)
    walk(first, model, 0, 5)
    file = io.BytesIO()
    torch.save({"ema": first.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    saved: dict[str, Any] = torch.load(file, weights_only=True)
    model = Net()
    model.load_state_dict(saved["model"])
    second = Ema(model, 0.99)
    second.load_state_dict(saved["ema"])
    walk(second, model, 5, 12)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
