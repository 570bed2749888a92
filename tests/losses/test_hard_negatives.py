"""InfoNCE whose images have mined texts as further candidates."""

from __future__ import annotations

import pytest
import torch
from cases import Inputs, assert_same, small_tiles
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses import hard_negative, infonce, matryoshka, sigmoid
from clipx.losses.infonce import InfoNCE
from clipx.types import HardNegatives


def hard_of(given: Inputs, count: int, seed: int = 3) -> HardNegatives:
    """`count` of each image, with ids of which some are equal."""
    generator = torch.Generator().manual_seed(seed)
    size = len(given.image)
    columns = torch.randn(size * count, 8, generator=generator, dtype=torch.float64)
    row_ids = torch.randint(0, 6, (size, 2), generator=generator)
    column_ids = torch.randint(0, 6, (size * count, 2), generator=generator)
    return HardNegatives(F.normalize(columns, dim=-1).requires_grad_(), row_ids, column_ids)


def by_hand(given: Inputs, hard: HardNegatives) -> Tensor:
    """MultipleNegativesRankingLoss from images to texts, and in-batch negatives back."""
    scale = given.logit_scale.exp()
    total = given.image.new_zeros(())
    for i in range(len(given.image)):
        logits = [scale * given.image[i] @ text for text in given.text]
        for column, ids in zip(hard.columns, hard.column_ids, strict=True):
            if not (ids == hard.row_ids[i]).any():
                logits.append(scale * given.image[i] @ column)
        back = [scale * given.text[i] @ image for image in given.image]
        if given.past is not None:
            logits += [scale * given.image[i] @ text for text in given.past[1]]
            back += [scale * given.text[i] @ image for image in given.past[0]]
        for side in (logits, back):
            total = total + torch.stack(side).logsumexp(0) - side[i]
    return total / (2 * len(given.image))


@pytest.mark.parametrize("num_past", [0, 5])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [1, 7])
def test_infonce_with_mined_texts_is_that_by_hand(
    size: int, count: int, num_past: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch.setattr, rows=3, size_bytes=3 * 8 * 4, kept=1)
    given = Inputs.draw(size, num_past=num_past, scale=5.0)
    hard = hard_of(given, count)
    out = InfoNCE()(
        given.image,
        given.text,
        logit_scale=given.logit_scale,
        pool=LocalPool(),
        negatives=given.negatives,
        hard=hard,
    )
    assert_same(out, by_hand(given, hard), [*given.leaves(bias=False), hard.columns])


def test_negatives_that_all_share_an_id_change_nothing() -> None:
    """Rows that are filled up, and captions that are the image's own."""
    given = Inputs.draw(4)
    hard = hard_of(given, 2)
    hard = HardNegatives(hard.columns, torch.ones(4, 2).long(), torch.ones(8, 2).long())
    options = {"logit_scale": given.logit_scale, "pool": LocalPool()}
    out = InfoNCE()(given.image, given.text, hard=hard, **options)
    expected = InfoNCE()(given.image, given.text, **options)
    assert out.loss.item() == expected.loss.item()
    (gradient,) = torch.autograd.grad(out.loss, [hard.columns])
    assert gradient.eq(0).all()


def test_matryoshka_cuts_mined_texts_too() -> None:
    given = Inputs.draw(5, scale=5.0)
    hard = hard_of(given, 2)
    widths = {8: 1.0, 3: 0.5}
    loss = matryoshka.Config(widths=widths, loss=infonce.Config()).build()
    out = loss(
        given.image,
        given.text,
        logit_scale=given.logit_scale,
        logit_bias=None,
        pool=LocalPool(),
        hard=hard,
    )
    expected = given.image.new_zeros(())
    for width, weight in widths.items():

        def cut(rows: Tensor, width: int = width) -> Tensor:
            return F.normalize(rows[:, :width], dim=-1)

        part = Inputs(
            cut(given.image), cut(given.text), given.logit_scale, given.logit_bias, None, None
        )
        columns = HardNegatives(cut(hard.columns), hard.row_ids, hard.column_ids)
        expected = expected + weight * by_hand(part, columns)
    assert_same(out, expected, [*given.leaves(bias=False), hard.columns])


def test_losses_say_whether_they_take_them() -> None:
    assert infonce.Config().build().takes_hard_negatives
    assert not infonce.Config(label_smoothing=0.1).build().takes_hard_negatives
    assert not sigmoid.Config().build().takes_hard_negatives
    assert not hard_negative.Config().build().takes_hard_negatives
    of_smoothed = infonce.Config(label_smoothing=0.1)
    wrapped = matryoshka.Config(widths={4: 1.0}, loss=of_smoothed).build()
    assert not wrapped.takes_hard_negatives
