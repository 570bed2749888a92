"""InfoNCE against its definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from blocks import BlockPool
from cases import EXACT, Inputs, assert_same, inputs, small_tiles
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import accuracy, infonce, infonce_rows
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses.infonce import Config
from clipx.types import LossOutput, Pool


def run(given: Inputs, pool: Pool | None = None, **config: float) -> LossOutput:
    return Config(**config).build()(
        given.image,
        given.text,
        logit_scale=given.logit_scale,
        pool=pool or LocalPool(),
        ids=given.ids,
        negatives=given.negatives,
    )


def of_rows(image: Tensor, text: Tensor, log_scale: Tensor) -> LossOutput:
    return Config().build()(image, text, logit_scale=log_scale, pool=LocalPool())


@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
@pytest.mark.parametrize("size", [1, 2, 17])
def test_value_and_every_gradient_equal_the_float64_reference(size: int, scale: float) -> None:
    given = Inputs.draw(size, scale=scale)
    leaves = given.leaves(bias=False)
    assert_same(run(given), infonce(*leaves), leaves)


def test_the_two_references_agree() -> None:
    """One logit at a time, and as a matrix with options that are off."""
    given = Inputs.draw(9)
    leaves = given.leaves(bias=False)
    torch.testing.assert_close(infonce_rows(*leaves).mean(), infonce(*leaves), **EXACT)


@settings(deadline=None, max_examples=150)
@given(
    given=inputs(),
    smoothing=st.sampled_from([0.0, 0.1, 0.7]),
    block=st.integers(1, 13),
    first=st.integers(0, 5),
    tile_rows=st.integers(1, 13),
    tile_bytes=st.integers(1, 800),
    kept=st.integers(0, 9),
)
def test_any_cut_into_blocks_and_tiles_equals_the_reference(
    given: Inputs,
    smoothing: float,
    block: int,
    first: int,
    tile_rows: int,
    tile_bytes: int,
    kept: int,
) -> None:
    """With label smoothing, one or two kinds of ids, past rows, and some tiles remembered."""
    with pytest.MonkeyPatch.context() as patch:
        small_tiles(patch.setattr, rows=tile_rows, size_bytes=tile_bytes, kept=kept)
        actual = run(given, BlockPool(block, first), label_smoothing=smoothing)
    leaves = given.leaves(bias=False)
    rows = infonce_rows(*leaves, ids=given.ids, label_smoothing=smoothing, past=given.past)
    assert_same(actual, rows.mean(), leaves)


def test_label_smoothing_is_that_of_torch() -> None:
    given = Inputs.draw(7)
    logits = given.logit_scale.exp() * given.image @ given.text.T
    target = torch.arange(7)
    expected = F.cross_entropy(logits, target, label_smoothing=0.2)
    expected = (expected + F.cross_entropy(logits.T, target, label_smoothing=0.2)) / 2
    assert_same(run(given, label_smoothing=0.2), expected, given.leaves(bias=False))


@pytest.mark.parametrize(
    ("chosen", "kinds"),
    [
        ("none", ()),
        ("caption", ("caption",)),
        ("image", ("image",)),
        ("both", ("caption", "image")),
    ],
)
def test_id_kinds_say_which_ids_the_loss_wants(chosen: str, kinds: tuple[str, ...]) -> None:
    assert Config(false_negatives=chosen).build().id_kinds == kinds


def test_a_masked_candidate_is_as_good_as_absent() -> None:
    """Rows 0 and 1 have one caption: to each, the other is no candidate."""
    given = Inputs.draw(4)
    ids = torch.tensor([[5], [5], [6], [7]])
    actual = Config().build()(
        given.image, given.text, logit_scale=given.logit_scale, pool=LocalPool(), ids=ids
    )
    logits = given.logit_scale.exp() * given.image @ given.text.T
    total = torch.zeros((), dtype=torch.float64)
    for row in range(4):
        candidates = torch.tensor([j for j in range(4) if ids[j] != ids[row] or j == row])
        own = (candidates == row).nonzero()[0]
        for matrix in (logits, logits.T):
            total = total + F.cross_entropy(matrix[row, candidates][None], own) / 8
    assert_same(actual, total, given.leaves(bias=False))


def test_without_gradients_the_value_is_the_same() -> None:
    given = Inputs.draw(9, kinds=1, num_past=3)
    pool = BlockPool(4)
    with torch.no_grad():
        actual = run(given, pool, label_smoothing=0.1)
    assert not actual.loss.requires_grad
    torch.testing.assert_close(actual.loss, run(given, pool, label_smoothing=0.1).loss.detach())


def test_backward_twice_adds_the_gradient_twice_and_weighs_it() -> None:
    given = Inputs.draw(5)
    out = run(given)
    (once,) = torch.autograd.grad(out.loss, given.image, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * out.loss, given.image)
    torch.testing.assert_close(thrice, 3 * once, **EXACT)


def test_one_row_has_no_negatives_so_nothing_to_learn() -> None:
    given = Inputs.draw(1)
    out = run(given)
    for value in (out.loss, *torch.autograd.grad(out.loss, given.leaves(bias=False))):
        # exactly 0 in real numbers; log-sum-exp of one logit may differ from it by rounding
        assert value.abs().max() <= 1e-12


def test_orthogonal_pairs_have_the_loss_of_the_closed_form() -> None:
    """Each row: one logit of s among N - 1 zeros, so the loss is log(1 + (N - 1) e^-s)."""
    eye = torch.eye(5, dtype=torch.float64)
    out = of_rows(eye, eye, torch.tensor(2.0, dtype=torch.float64).log())
    assert out.loss.item() == pytest.approx(math.log(1 + 4 * math.exp(-2)), rel=1e-12)


def test_far_apart_logits_at_scale_100_stay_finite_and_exact() -> None:
    """Logits of -100 and 100: a softmax without its maximum taken out would overflow in float32."""
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    text = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    log_scale = torch.tensor(math.log(100.0), requires_grad=True)
    out = of_rows(image, text, log_scale)
    assert out.loss.item() == pytest.approx(200.0, rel=1e-6)
    gradients = torch.autograd.grad(out.loss, (image, text, log_scale))
    assert all(torch.isfinite(value).all() for value in gradients)


def test_inside_bf16_autocast_logits_accumulate_in_float32() -> None:
    """In bfloat16 logits near 100 step by 0.5; allowed are ten float32 steps of a logit near
    100."""
    given = Inputs.draw(17, scale=100.0, noise=0.05, dtype=torch.float32)
    leaves = given.leaves(bias=False)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = infonce(*exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(given)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss.double(), expected, rtol=0, atol=1e-4)
    # A gradient is such a logit's softmax times the scale of 100, and terms of both signs cancel.
    for part, expected_part in zip(
        torch.autograd.grad(out.loss, leaves), torch.autograd.grad(expected, exact), strict=True
    ):
        torch.testing.assert_close(part.double(), expected_part, rtol=1e-4, atol=1e-4)


def test_bf16_rows_are_lifted_and_their_gradients_come_back_in_bf16() -> None:
    """The value is that of the rounded rows in float32; the gradients are rounded once."""
    given = Inputs.draw(17, dtype=torch.bfloat16)
    leaves = [given.image, given.text, given.logit_scale.detach().float().requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = infonce(*exact)
    out = of_rows(*leaves)
    assert out.loss.dtype == torch.float32
    # differences of logits near 14, which float32 has to 1e-6
    torch.testing.assert_close(out.loss.double(), expected, rtol=0, atol=1e-5)
    gradients = torch.autograd.grad(out.loss, leaves)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for part, expected_part in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        # bfloat16 has 8 bits of mantissa
        torch.testing.assert_close(part.double(), expected_part, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("block", [4, 17])
def test_accuracy_counts_images_whose_closest_caption_is_their_own(
    noise: float, block: int
) -> None:
    given = Inputs.draw(17, noise=noise)
    actual = run(given, BlockPool(block)).metrics["image_to_text_accuracy"]
    expected = accuracy(given.image.detach(), given.text.detach())
    assert (expected == 1) == (noise == 0)
    assert actual.item() == pytest.approx(expected, abs=1e-6)
    assert not actual.requires_grad


def test_a_model_that_has_collapsed_is_never_right() -> None:
    """Its candidates are all equal, and the first of them is no better than any other."""
    rows = torch.ones(8, 4, dtype=torch.float64) / 2
    out = of_rows(rows, rows, torch.zeros((), dtype=torch.float64))
    assert out.metrics["image_to_text_accuracy"].item() == 0
