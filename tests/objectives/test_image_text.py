"""The objective of image-text pairs, and its queue."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import infonce_rows
from stepping import batch, model
from tiny_runs import MODEL
from torch import Tensor

from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.losses.infonce import InfoNCE
from clipx.objectives.image_text import ImageText
from clipx.objectives.queue import RowQueue, past_pairs
from clipx.types import Loss, LossOutput


class Unused(Loss):
    """A loss without temperature and bias."""

    def __call__(self, image: Tensor, text: Tensor, **_: Any) -> LossOutput:
        return LossOutput((image - text).square().sum(1).mean())


@pytest.mark.parametrize("loss", [InfoNCE(), Unused()], ids=["infonce", "no temperature"])
def test_every_parameter_has_a_gradient(loss: Loss) -> None:
    """Data-parallel training waits for all of them. InfoNCE does not depend on a bias."""
    encoder = model(MODEL | {"init_logit_bias": -2.0})
    objective = ImageText(encoder, loss, normalize=normalize)
    out = objective.loss(objective.embed(objective.prepare(batch())), LocalPool())
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert encoder.logit_bias is not None
    assert encoder.logit_bias.grad == 0


def test_its_own_state_is_the_queue_without_the_model() -> None:
    objective = ImageText(model(), InfoNCE(), normalize=normalize)
    assert objective.own_state() == {}
    objective = ImageText(model(), InfoNCE(), normalize=normalize, queue=4)
    objective.loss(objective.embed(objective.prepare(batch())), LocalPool())
    (state,) = objective.own_state().values()
    assert {name: len(rows) for name, rows in state.items()} == {"image": 4, "text": 4}
    other = ImageText(model(), InfoNCE(), normalize=normalize, queue=4)
    other.load_state_dict(objective.own_state(), strict=False)
    for name, rows in next(iter(other.own_state().values())).items():
        assert torch.equal(rows, state[name])


def test_an_evaluation_of_the_loss_leaves_the_queue_as_it_is() -> None:
    objective = ImageText(model(), InfoNCE(), normalize=normalize, queue=4)
    with torch.no_grad():
        objective.loss(objective.embed(objective.prepare(batch())), LocalPool())
    assert next(iter(objective.own_state().values())) == {}


def test_rows_that_are_not_finite_are_not_kept() -> None:
    queue = RowQueue(4)
    queue.push(LocalPool(), image=torch.ones(2, 3), text=torch.ones(2, 3), ids=None)
    queue.push(LocalPool(), image=torch.full((2, 3), torch.nan), text=torch.ones(2, 3))
    negatives = past_pairs(queue, None, torch.device("cpu"))
    assert negatives is not None
    assert negatives.rows.tolist() == torch.ones(2, 3).tolist()


@pytest.mark.parametrize("kinds", [0, 2])
def test_a_queue_saved_with_other_kinds_of_ids_is_not_used_and_starts_anew(kinds: int) -> None:
    """The run now wants ids of one kind."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(3, 5, generator=generator).double() for _ in range(2))
    ids = torch.tensor([[1], [2], [1]])
    queue = RowQueue(4)
    saved = {"image": torch.ones(2, 5).double(), "text": torch.ones(2, 5).double()}
    queue.set_extra_state(saved | ({"ids": torch.ones(2, kinds)} if kinds else {}))
    negatives = past_pairs(queue, ids, image.device)
    assert negatives is None
    scale = torch.tensor(1.0).double()
    out = InfoNCE()(image, text, logit_scale=scale, pool=LocalPool(), ids=ids, negatives=negatives)
    expected = infonce_rows(image, text, scale, ids=ids).mean()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    queue.push(LocalPool(), image=image, text=text, ids=ids)
    held = past_pairs(queue, ids, image.device)
    assert held is not None
    assert held.ids is not None
    assert [len(rows) for rows in (held.rows, held.columns, held.ids)] == [3, 3, 3]
