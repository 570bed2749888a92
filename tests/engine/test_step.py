"""One optimizer step on a tiny model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from training import MODEL

from clipx.data.transforms import normalize
from clipx.distributed.pool import LocalPool
from clipx.engine.optim import OptimConfig, build_optimizer
from clipx.engine.step import train_step
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder
from clipx.types import Batch

CPU = torch.device("cpu")
ROWS = 6


def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (ROWS, 3, 32, 32), generator=generator, dtype=torch.uint8)
    words = torch.randint(1, 49405, (ROWS, 7), generator=generator)
    text = torch.cat([words, torch.full((ROWS, 1), 49407)], dim=1)
    return Batch(image, text, [str(i) for i in range(ROWS)], list(range(ROWS)), {"position": ROWS})


def model() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(MODEL)


def step(
    encoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    clip: float | None = 1.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    return train_step(
        encoder,
        optimizer,
        InfoNCE(),
        LocalPool(),
        batch(),
        device=CPU,
        dtype=dtype,
        clip_grad_norm=clip,
    )


def gradients(encoder: DualEncoder) -> dict[str, torch.Tensor]:
    """Of the batch's loss in float32, unclipped."""
    image, text, logit_scale, _ = encoder(normalize(batch().image), batch().text)
    out = InfoNCE()(image, text, logit_scale=logit_scale, pool=LocalPool())
    names = [name for name, _ in encoder.named_parameters()]
    return dict(zip(names, torch.autograd.grad(out.loss, list(encoder.parameters())), strict=True))


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_on_one_repeated_batch_lower_its_loss(dtype: torch.dtype) -> None:
    encoder = model()
    optimizer = build_optimizer(encoder, OptimConfig(lr=1e-3))
    losses = [step(encoder, optimizer, dtype=dtype)["loss"].item() for _ in range(12)]
    assert losses[0] > 1.0, "six pairs that nothing tells apart: about ln 6"
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.dtype == torch.float32 for p in encoder.parameters())


def test_a_step_of_plain_gradient_descent_is_the_gradient_clipped_to_the_limit() -> None:
    """By SGD, because Adam's step hides the size of the gradient."""
    total = norm(gradients(model()))
    for limit in (None, 0.5 * total, 2 * total):
        encoder = model()
        before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
        expected = gradients(encoder)
        metrics = step(encoder, torch.optim.SGD(encoder.parameters(), lr=1e-2), clip=limit)
        factor = 0.5 if limit is not None and limit < total else 1.0
        for name, parameter in encoder.named_parameters():
            # float32 steps of weights near 1, divided by the rate, are 1e-5
            found = (before[name] - parameter.detach()) / 1e-2
            torch.testing.assert_close(found, factor * expected[name], rtol=1e-3, atol=2e-5)
        assert metrics["grad_norm"].item() == pytest.approx(total, rel=1e-5), "before clipping"


def test_the_metrics_are_detached_scalars_of_this_batch() -> None:
    encoder = model()
    optimizer = build_optimizer(encoder, OptimConfig())
    with torch.no_grad():
        image, text, logit_scale, _ = encoder(normalize(batch().image), batch().text)
        expected = InfoNCE()(image, text, logit_scale=logit_scale, pool=LocalPool())
    metrics = step(encoder, optimizer)
    assert metrics.keys() == {"loss", "image_to_text_accuracy", "scale", "grad_norm"}
    assert metrics["loss"].item() == pytest.approx(expected.loss.item(), rel=1e-5)
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad


def test_no_gradient_is_left_for_the_next_step() -> None:
    encoder = model()
    step(encoder, build_optimizer(encoder, OptimConfig()))
    assert all(p.grad is None for p in encoder.parameters())


def test_the_scale_is_clamped_after_the_step() -> None:
    encoder = model()
    with torch.no_grad():
        encoder.logit_scale.fill_(6.0)
    metrics = step(encoder, torch.optim.SGD(encoder.parameters(), lr=1e-6))
    assert metrics["scale"].item() == pytest.approx(100, rel=1e-5)
    assert encoder.logit_scale.item() == pytest.approx(math.log(100), rel=1e-6)
