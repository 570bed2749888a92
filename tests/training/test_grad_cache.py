"""Micro-batches (arXiv:2101.06983) give the step of the single big batch, and keep less alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stepping import PATCH_DROPOUT, batch, exact, model, stepper
from tiny_runs import MODEL
from torch import Tensor, nn

from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder
from clipx.objectives.identities import position_draws
from clipx.training.precision import LossScaler
from clipx.types import Loss

ROWS = 12
RATE = 1.0  # by plain gradient descent: Adam's step hides the size of the gradient


def updates(
    encoder: DualEncoder, micro_batch_size: int | None, **settings: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(gradient of each parameter, as the step has applied it; metrics)"""
    found: dict[str, Tensor] = {}

    class Recorder(torch.optim.SGD):
        def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
            found.update(
                {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
            )

    optimizer = Recorder(encoder.parameters(), lr=RATE)
    step = stepper(encoder, optimizer, micro_batch_size=micro_batch_size, **settings)
    return found, step(batch(ROWS)).metrics


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each gradient to 1e-10 of its norm in float64, and to a few roundings in float32: 5e-6."""
    assert found.keys() == expected.keys() != set()
    off = {n: float((found[n] - g).double().norm()) for n, g in expected.items()}
    size = {n: float(g.double().norm()) for n, g in expected.items()}
    for name, gradient in expected.items():
        limit = 1e-10 if gradient.dtype == torch.float64 else 5e-6
        assert off[name] < limit * size[name], name


def test_micro_batches_equal_the_big_batch_in_float32_too() -> None:
    expected, _ = updates(model(PATCH_DROPOUT), None)
    found, _ = updates(model(PATCH_DROPOUT), 4)
    assert_same(found, expected)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 11])
@pytest.mark.parametrize("bias", [None, -2.0])
def test_micro_batches_equal_the_big_batch_with_patch_dropout(
    size: int, bias: float | None
) -> None:
    """5 and 11 leave a smaller last part."""
    cfg = PATCH_DROPOUT if bias is None else PATCH_DROPOUT | {"init_logit_bias": bias}
    loss = InfoNCE() if bias is None else Shifted()
    expected, told = updates(exact(cfg), None, loss=loss)
    found, told_too = updates(exact(cfg), size, loss=loss)
    assert_same(found, expected)
    assert found.keys() == dict(model(cfg).named_parameters()).keys()
    assert told.keys() == told_too.keys()
    for name, value in told.items():
        torch.testing.assert_close(told_too[name], value, rtol=1e-5, atol=1e-6, msg=name)


class Shifted(Loss):
    """A loss that reads the bias, so that its gradient is counted too."""

    def __call__(self, image: Tensor, text: Tensor, **other: Any) -> Any:
        out = InfoNCE()(image, text, **other)
        scores = (image @ text.T).sum() * other["logit_scale"].exp() / 100
        return type(out)(out.loss + (scores - other["logit_bias"]).square(), out.metrics)


def test_patch_dropout_follows_the_position_of_a_sample() -> None:
    """The draws are those of (seed, position); another seed drops other patches."""
    losses = {seed: updates(model(PATCH_DROPOUT), 5, seed=seed)[1]["loss"] for seed in (0, 1)}
    assert losses[0] != losses[1]
    encoder = model(PATCH_DROPOUT)
    draws = position_draws(1, range(ROWS), encoder.num_draws)
    views = batch(ROWS).views
    image, text = encoder(normalize(views["image"]), views["text"], draws)
    loss = InfoNCE()(image, text, logit_scale=encoder.logit_scale, pool=LocalPool()).loss
    assert loss.item() == pytest.approx(losses[1].item(), rel=1e-5)


class Dropping(nn.Module):
    """A tower with dropout before it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower, self.dropout = tower, nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Tensor:
        return self.tower(self.dropout(image))


def test_dropout_draws_the_same_in_both_passes_and_the_stream_goes_on_after_them() -> None:
    def dropping() -> DualEncoder:
        encoder = model()
        return DualEncoder(MODEL, (Dropping(encoder.visual), encoder.text))

    encoder = dropping()
    torch.manual_seed(7)
    found, _ = updates(encoder, 5)
    after = torch.rand(3)

    encoder = dropping()
    torch.manual_seed(7)
    views = batch(ROWS).views
    parts = views["image"].split(5)
    image = torch.cat([encoder.encode_image(normalize(part)) for part in parts])
    text = encoder.encode_text(views["text"])
    out = InfoNCE()(image, text, logit_scale=encoder.logit_scale, logit_bias=None, pool=LocalPool())
    out.loss.backward()
    assert torch.equal(after, torch.rand(3))
    assert_same(found, {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})


@pytest.mark.parametrize(
    "locked", [["visual"], ["text", "logit_scale"], ["visual", "text"], ["visual", "logit_scale"]]
)
def test_locked_parts_get_no_gradient(locked: list[str]) -> None:
    results = []
    for size in (None, 5):
        encoder = model()
        encoder.lock(locked)
        results.append(updates(encoder, size)[0])
    assert_same(results[1], results[0])
    assert not any(name.startswith(tuple(locked)) for name in results[1])


def test_the_scalers_factor_is_taken_out_again() -> None:
    plain, _ = updates(model(), None)
    for size in (None, 5):
        scaler = LossScaler(2.0**10)
        scaled, _ = updates(model(), size, scaler=scaler)
        assert_same(scaled, plain)


def most_kept_for_backward(micro_batch_size: int | None) -> int:
    """Largest sum, at any moment of a step, of the bytes that the graph holds."""
    alive, most = 0, 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def release(size: int) -> None:
        nonlocal alive
        alive -= size

    def pack(tensor: Tensor) -> Held:
        nonlocal alive, most
        size = tensor.nbytes
        held = Held(tensor)
        weakref.finalize(held, release, size)
        alive += size
        most = max(most, alive)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        updates(model(), micro_batch_size)
    assert alive == 0
    return most


def test_only_one_micro_batch_has_its_activations_alive() -> None:
    """They are proportional to the rows, beside weights that are kept whatever the batch is."""
    kept = {size: most_kept_for_backward(size) for size in (2, 4, 6, None)}
    per_row = (kept[4] - kept[2]) / 2
    fixed = kept[2] - 2 * per_row
    assert kept[6] == pytest.approx(fixed + 6 * per_row, rel=0.05)
    assert kept[None] > fixed + 0.9 * ROWS * per_row
    assert per_row > 10_000, "a row's activations, not its features"
