"""One optimizer step on a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from stepping import batch, model, stepper

from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.losses import infonce
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder
from clipx.objectives.identities import caption_ids, position_draws, row_ids
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.types import LossOutput


def loss_of(encoder: DualEncoder) -> LossOutput:
    """Of the batch, in float32."""
    views = batch().views
    image, text = encoder(normalize(views["image"]), views["text"])
    return InfoNCE()(image, text, logit_scale=encoder.logit_scale, pool=LocalPool())


def gradients(encoder: DualEncoder) -> dict[str, torch.Tensor]:
    """Of the batch's loss in float32, unclipped."""
    found = torch.autograd.grad(loss_of(encoder).loss, list(encoder.parameters()))
    return dict(zip([name for name, _ in encoder.named_parameters()], found, strict=True))


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_on_one_repeated_batch_lower_its_loss(dtype: torch.dtype) -> None:
    encoder = model()
    step = stepper(encoder, build_optimizer(encoder, OptimConfig(lr=1e-3)), dtype=dtype)
    losses = [step(batch()).metrics["loss"].item() for _ in range(12)]
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
        sgd = torch.optim.SGD(encoder.parameters(), lr=1e-2)
        stepped = stepper(encoder, sgd, clip_grad_norm=limit)(batch())
        factor = 0.5 if limit is not None and limit < total else 1.0
        for name, parameter in encoder.named_parameters():
            # float32 steps of weights near 1, divided by the rate, are 1e-5
            found = (before[name] - parameter.detach()) / 1e-2
            torch.testing.assert_close(found, factor * expected[name], rtol=1e-3, atol=2e-5)
        found_norm = stepped.metrics["grad_norm"].item()
        assert found_norm == pytest.approx(total, rel=1e-5), "before clipping"


def test_the_metrics_are_detached_scalars_of_this_batch() -> None:
    encoder = model()
    with torch.no_grad():
        expected = loss_of(encoder).loss.item()
    stepped = stepper(encoder, build_optimizer(encoder, OptimConfig()))(batch())
    names = {"loss", "image_to_text_accuracy", "scale", "grad_norm", "clamped"}
    assert names <= stepped.metrics.keys()
    assert stepped.metrics["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert (stepped.outcome, stepped.bad_rows) == ("updated", [])
    for value in stepped.metrics.values():
        assert value.shape == ()
        assert not value.requires_grad


def test_no_gradient_is_left_for_the_next_step() -> None:
    encoder = model()
    stepper(encoder, build_optimizer(encoder, OptimConfig()))(batch())
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize(("before", "after", "clamped"), [(6.0, 100.0, 1), (2.0, math.e**2, 0)])
def test_the_scale_is_clamped_after_the_step_and_that_is_told(
    before: float, after: float, clamped: int
) -> None:
    encoder = model()
    with torch.no_grad():
        encoder.logit_scale.fill_(before)
    metrics = stepper(encoder, torch.optim.SGD(encoder.parameters(), lr=1e-6))(batch()).metrics
    assert metrics["scale"].item() == pytest.approx(after, rel=1e-5)
    assert metrics["clamped"].item() == clamped
    assert encoder.logit_scale.item() == pytest.approx(math.log(after), rel=1e-5)


# --- what a row brings along ---


def test_draws_are_a_function_of_seed_and_position_alone() -> None:
    all_of_them = position_draws(3, range(1000), 7)
    assert all_of_them.dtype == torch.float32
    assert torch.equal(position_draws(3, [17, 5], 7), all_of_them[[17, 5]])
    assert not torch.equal(position_draws(4, range(1000), 7), all_of_them)
    assert 0 <= all_of_them.min() <= all_of_them.max() < 1
    # 7,000 uniform numbers: mean 1/2 with a standard error of 0.0035, and no two columns alike
    assert abs(all_of_them.mean().item() - 0.5) < 0.015
    assert torch.corrcoef(all_of_them.T).fill_diagonal_(0).abs().max() < 0.15


def test_caption_ids_know_a_caption_whatever_it_is_padded_to() -> None:
    text = batch(12).views["text"]
    wider = torch.nn.functional.pad(text, (0, 5))
    ids = caption_ids(text, pad_id=0)
    assert len(set(ids.tolist())) == 12
    assert ids.tolist() == caption_ids(wider, pad_id=0).tolist()
    swapped = text[:, [1, 0, *range(2, 8)]]
    assert not set(ids.tolist()) & set(caption_ids(swapped, pad_id=0).tolist()), "order counts"
    features = torch.tensor([[0.5, 1.0], [1.0, 0.5], [0.5, 1.0]])
    one, two, three = caption_ids(features, pad_id=0).tolist()
    assert one == three != two


def test_a_loss_that_masks_false_negatives_is_told_the_ids() -> None:
    """With one caption for all rows, nothing but positives is left: InfoNCE is 0."""
    rows = batch()
    rows.views["text"][:] = rows.views["text"][0]
    for kind, losses in (("none", (1.0, 3.0)), ("caption", (0.0, 0.0)), ("image", (1.0, 3.0))):
        encoder = model()
        sgd = torch.optim.SGD(encoder.parameters(), lr=0.1)
        masked = infonce.Config(false_negatives=kind).build()
        loss = stepper(encoder, sgd, loss=masked, micro_batch_size=4)(rows).metrics["loss"].item()
        assert losses[0] - 1e-6 <= loss <= losses[1] + 1e-6, kind


def test_ids_have_one_column_a_kind() -> None:
    one, two = batch(4), batch(4, seed=6)
    both = row_ids(one, ("caption", "image"), pad_id=0)
    assert both.shape == (4, 2)
    assert both.dtype == torch.int64
    image = row_ids(two, ("image",), pad_id=0)
    assert torch.equal(image[:, 0], both[:, 1]), "by the key, whatever the pixels"
    numbered = replace(one, samples=[3, 1, 4, 1])
    assert row_ids(numbered, ("sample",), pad_id=0).tolist() == [[3], [1], [4], [1]]
