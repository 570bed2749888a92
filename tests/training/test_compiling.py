"""Compiled towers give the same numbers, and are compiled a fixed number of times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from stepping import PATCH_DROPOUT, batch, model, stepper
from torch._dynamo.testing import CompileCounterWithBackend

from clipx.training.build import compile_towers
from clipx.types import Batch

LENGTHS = (8, 10, 9, 12, 11, 16)
ONE_LAYER = PATCH_DROPOUT | {
    "vision_cfg": PATCH_DROPOUT["vision_cfg"] | {"layers": 1},
    "text_cfg": PATCH_DROPOUT["text_cfg"] | {"layers": 1},
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What other tests have compiled is forgotten, and so is what this one compiles."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def captions_of(length: int) -> Batch:
    found = batch(seed=length)
    text = torch.zeros(6, length, dtype=torch.int64)
    text[:, :8] = found.views["text"]
    text[0, : length - 1], text[0, length - 1] = torch.arange(1, length), 49407
    views = {"image": found.views["image"], "text": text}
    return Batch(views, found.keys, found.positions, {})


@pytest.mark.parametrize(("size", "most"), [pytest.param(None, 3, marks=pytest.mark.slow), (3, 6)])
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # traces backward too
        pytest.param("eager", marks=pytest.mark.slow),
        pytest.param("inductor", marks=pytest.mark.slow),
    ],
)
def test_six_lengths_of_captions_are_compiled_at_most_twice(
    backend: str, size: int | None, most: int
) -> None:
    """Once more for images; micro-batches compile for both of their passes. Loss and gradient norm
    are those of the towers as they are."""
    plain, compiled = model(ONE_LAYER), model(ONE_LAYER)
    names = list(compiled.state_dict())
    counter = CompileCounterWithBackend(backend)
    compile_towers(compiled, backend=counter)
    steps = [
        stepper(m, torch.optim.SGD(m.parameters(), lr=1e-3), micro_batch_size=size)
        for m in (plain, compiled)
    ]
    for length in LENGTHS:
        expected, found = (step(captions_of(length)).metrics for step in steps)
        for name in ("loss", "grad_norm"):
            assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-4), length
    assert counter.frame_count <= most
    assert list(compiled.state_dict()) == names
