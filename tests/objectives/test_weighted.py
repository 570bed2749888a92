"""A weighted sum of objectives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from methods import VIEWS, batch, build, loss_of

from clipx.data.augment import Augmentation
from clipx.objectives import image_text, momentum, two_view, weighted
from clipx.types import UserError

BOTH = weighted.Config(
    objectives={"pairs": image_text.Config(), "views": two_view.Config(views=VIEWS)},
    weights={"views": 0.25},
)


def test_it_is_the_sum_of_its_objectives_each_with_images_of_its_own() -> None:
    objective = build(BOTH)
    rows = batch(num_views=3)
    out = loss_of(objective, rows)
    pairs = loss_of(objective.objectives["pairs"], rows)
    names = {"image": "image_2", "image_2": "image_3"}
    shifted = {name: rows.views[source] for name, source in names.items()}
    views = loss_of(objective.objectives["views"], replace(rows, views=shifted))
    torch.testing.assert_close(out.loss, pairs.loss + 0.25 * views.loss)
    torch.testing.assert_close(out.metrics["pairs.loss"], pairs.loss.detach())
    torch.testing.assert_close(out.metrics["views.loss"], views.loss.detach())
    assert {"pairs.image_to_text_accuracy", "views.view_accuracy"} <= out.metrics.keys()
    assert objective.positives == (("pairs.image", "pairs.text"), ("views.first", "views.second"))


def test_the_views_of_a_run_are_those_of_all_objectives() -> None:
    of_run = Augmentation()
    assert BOTH.augmentations(of_run) == [of_run, *[VIEWS.augmentation] * 2]
    assert BOTH.contrasts_text
    alone = weighted.Config(objectives={"views": two_view.Config(), "moco": momentum.Config()})
    assert not alone.contrasts_text


def test_all_share_one_model_which_is_trained_and_saved_once() -> None:
    objective = build(BOTH)
    loss_of(objective, batch(num_views=3)).loss.backward()
    names = [name for name, _ in objective.named_parameters()]
    assert len(names) == len(set(names))
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert objective.encoder.text.token_embedding.weight.requires_grad, "images alone lock texts"
    state = objective.own_state()
    assert "objectives.views.contrast.head.0.weight" in state
    assert not any("encoder" in name for name in state)
    assert {name for name, _ in objective.own_parameters()} <= state.keys()


def test_objectives_over_images_alone_leave_the_texts_as_they_are() -> None:
    moco = momentum.Config(views=VIEWS, queue=4)
    views = two_view.Config(views=VIEWS)
    objective = build(weighted.Config(objectives={"views": views, "moco": moco}))
    assert not objective.encoder.text.token_embedding.weight.requires_grad
    assert objective.encoder.visual.proj.requires_grad


def test_the_log_says_when_the_temperature_was_clamped() -> None:
    config = weighted.Config(objectives={"a": image_text.Config(), "b": image_text.Config()})
    objective = build(config)
    with torch.no_grad():
        objective.encoder.logit_scale.fill_(9.0)
    assert objective.after_step()["clamped"] == 1
    assert objective.after_step()["clamped"] == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(BOTH, weights={"view": 1.0}), "objective.weights names view; the objectives are"),
        (weighted.Config(objectives={"a.b": image_text.Config()}), "'a.b' cannot be used"),
        (weighted.Config(objectives={"keys": image_text.Config()}), "'keys' cannot be used"),
    ],
)
def test_names_that_do_not_fit_are_refused(config: weighted.Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(config)
