"""InfoNCE against its definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from reference import accuracy, infonce
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses.infonce import Config

# Sums of up to 17 terms of size 1 to 100 in another order: 1e-13 off. Nothing wrong is that close.
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def rows(size: int, *, seed: int = 0, noise: float = 0.5, dtype: torch.dtype = torch.float64):
    """Matched unit rows and a log scale, as leaves that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(size, 8, generator=generator, dtype=torch.float64)
    text = image + noise * torch.randn(size, 8, generator=generator, dtype=torch.float64)
    pair = [F.normalize(x, dim=-1).to(dtype).requires_grad_() for x in (image, text)]
    return (*pair, torch.tensor(math.log(1 / 0.07), dtype=dtype, requires_grad=True))


def loss_and_gradients(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    out = Config().build()(*inputs, LocalPool())
    return [out.loss.detach(), *torch.autograd.grad(out.loss, inputs)]


@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
@pytest.mark.parametrize("size", [1, 2, 17])
def test_value_and_every_gradient_equal_the_float64_reference(size: int, scale: float) -> None:
    image, text, _ = rows(size)
    log_scale = torch.tensor(math.log(scale), dtype=torch.float64, requires_grad=True)
    inputs = (image, text, log_scale)
    expected = infonce(*inputs)
    found = loss_and_gradients(inputs)
    for mine, theirs in zip(
        found, [expected.detach(), *torch.autograd.grad(expected, inputs)], strict=True
    ):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_one_row_has_no_negatives_so_nothing_to_learn() -> None:
    for value in loss_and_gradients(rows(1)):
        # exactly 0 in real numbers; log-sum-exp of one logit may differ from it by rounding
        assert value.abs().max() <= 1e-12


def test_orthogonal_pairs_have_the_loss_of_the_closed_form() -> None:
    """Each row: one logit of s among N - 1 zeros, so the loss is log(1 + (N - 1) e^-s)."""
    eye = torch.eye(5, dtype=torch.float64)
    out = Config().build()(eye, eye, torch.tensor(2.0, dtype=torch.float64).log(), LocalPool())
    assert out.loss.item() == pytest.approx(math.log(1 + 4 * math.exp(-2)), rel=1e-12)


def test_far_apart_logits_at_scale_100_stay_finite_and_exact() -> None:
    """Logits of -100 and 100: a softmax without its maximum taken out would overflow in float32."""
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    text = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    found = loss_and_gradients((image, text, torch.tensor(math.log(100.0), requires_grad=True)))
    assert found[0].item() == pytest.approx(200.0, rel=1e-6)
    assert all(torch.isfinite(value).all() for value in found)


def test_inside_bf16_autocast_logits_accumulate_in_float32() -> None:
    """In bfloat16 logits near 100 step by 0.5; allowed are ten float32 steps of a logit near
    100."""
    *pair, _ = rows(17, noise=0.05, dtype=torch.float32)
    inputs = (*pair, torch.tensor(math.log(100.0), requires_grad=True))
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    expected = infonce(*exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = Config().build()(*inputs, LocalPool())
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss.double(), expected, rtol=0, atol=1e-4)
    # A gradient is such a logit's softmax times the scale of 100, and terms of both signs cancel.
    for mine, theirs in zip(
        torch.autograd.grad(out.loss, inputs), torch.autograd.grad(expected, exact), strict=True
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_accuracy_counts_images_whose_closest_caption_is_their_own(noise: float) -> None:
    image, text, log_scale = rows(17, noise=noise)
    out = Config().build()(image, text, log_scale, LocalPool())
    expected = accuracy(image.detach(), text.detach())
    assert (expected == 1) == (noise == 0)
    assert out.metrics["image_to_text_accuracy"].item() == pytest.approx(expected, abs=1e-6)
    assert not out.metrics["image_to_text_accuracy"].requires_grad
