"""The sigmoid loss against its definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from blocks import BlockPool
from cases import Inputs, assert_same, inputs, small_tiles
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import accuracy, sigmoid_rows
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses.sigmoid import Config, softplus_row_sums
from clipx.types import LossOutput, Pool, UserError


def run(given: Inputs, pool: Pool | None = None) -> LossOutput:
    return Config().build()(
        given.image,
        given.text,
        logit_scale=given.logit_scale,
        logit_bias=given.logit_bias,
        pool=pool or LocalPool(),
        ids=given.ids,
        negatives=given.negatives,
    )


@settings(deadline=None, max_examples=150)
@given(
    given=inputs(),
    block=st.integers(1, 13),
    first=st.integers(0, 5),
    tile_rows=st.integers(1, 13),
    tile_bytes=st.integers(1, 800),
)
def test_any_cut_into_blocks_and_tiles_equals_the_reference(
    given: Inputs, block: int, first: int, tile_rows: int, tile_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_tiles(patch.setattr, rows=tile_rows, size_bytes=tile_bytes, kept=1)
        actual = run(given, BlockPool(block, first))
    leaves = given.leaves(bias=True)
    assert_same(actual, sigmoid_rows(*leaves, ids=given.ids, past=given.past).mean(), leaves)


def test_it_is_binary_cross_entropy_summed_over_texts() -> None:
    given = Inputs.draw(6, bias=-3.0)
    logits = given.logit_scale.exp() * given.image @ given.text.T + given.logit_bias
    expected = F.binary_cross_entropy_with_logits(logits, torch.eye(6).double(), reduction="sum")
    assert_same(run(given), expected / 6, given.leaves(bias=True))


@pytest.mark.parametrize("cosine", [-1.0, 1.0])
def test_logits_of_100_and_more_stay_finite_and_exact(cosine: float) -> None:
    """Two pairs whose cosines are all equal: a logit of +-100 counts -z or z, once of each sign."""
    image = torch.tensor([[1.0, 0.0]] * 2, requires_grad=True)
    text = (cosine * torch.tensor([[1.0, 0.0]] * 2)).requires_grad_()
    log_scale = torch.tensor(math.log(100.0), requires_grad=True)
    bias = torch.tensor(-20.0, requires_grad=True)
    out = Config().build()(image, text, logit_scale=log_scale, logit_bias=bias, pool=LocalPool())
    # one wrong pair of two for each image: the negative at z = 80, or the positive at z = -120
    assert out.loss.item() == pytest.approx(80 if cosine > 0 else 120, rel=1e-6)
    gradients = torch.autograd.grad(out.loss, (image, text, log_scale, bias))
    assert all(torch.isfinite(value).all() for value in gradients)


def test_softplus_sums_of_float32_has_the_digits_of_float32() -> None:
    """At a bias of -10 a negative adds 4.5e-5, of which a sum over 1 + 4.5e-5 would lose most."""
    for center in (-30.0, -10.0, 0.0, 30.0, 100.0):
        logits = torch.full((4, 1030), center) + torch.linspace(-1, 1, 1030)
        expected = F.softplus(logits.double(), threshold=1e6).sum()
        actual = softplus_row_sums(logits.clone()).double().sum()
        # at -30 the float64 factors of 1 + 1e-13 have three digits left, of a sum of 4e-10
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-12)


def test_inside_bf16_autocast_logits_accumulate_in_float32() -> None:
    given = Inputs.draw(17, scale=100.0, noise=0.05, dtype=torch.float32)
    exact = [x.detach().double() for x in given.leaves(bias=True)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(given)
    assert out.loss.dtype == torch.float32
    # a sum of 17 terms of up to 100, each off by ten float32 steps at most
    torch.testing.assert_close(out.loss.double(), sigmoid_rows(*exact).mean(), rtol=1e-5, atol=0)


def test_without_a_bias_the_message_says_what_to_put_where() -> None:
    given = Inputs.draw(2)
    with pytest.raises(UserError, match="init_logit_bias: -10"):
        Config().build()(
            given.image,
            given.text,
            logit_scale=given.logit_scale,
            logit_bias=None,
            pool=LocalPool(),
        )


def test_id_kinds_say_which_ids_the_loss_wants() -> None:
    assert Config().build().id_kinds == ()
    assert Config(false_negatives="both").build().id_kinds == ("caption", "image")


def test_without_gradients_the_value_is_the_same() -> None:
    given = Inputs.draw(9, kinds=1, num_past=3)
    pool = BlockPool(4)
    with torch.no_grad():
        actual = run(given, pool).loss
    assert not actual.requires_grad
    torch.testing.assert_close(actual, run(given, pool).loss.detach())


def test_accuracy_counts_images_whose_closest_caption_is_their_own() -> None:
    given = Inputs.draw(17, noise=1.0)
    actual = run(given, BlockPool(5)).metrics["image_to_text_accuracy"].item()
    expected = accuracy(given.image.detach(), given.text.detach())
    assert 0 < expected < 1
    assert actual == pytest.approx(expected, abs=1e-6)
