"""Objectives over views of an image: SimCLR and SLIP."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from methods import DROPOUT, VIEWS, batch, build, loss_of
from stepping import model
from tiny_runs import MODEL
from torch import Tensor
from torch.nn import functional as F

from clipx.data.augment import Augmentation
from clipx.data.preprocessing import normalize
from clipx.losses.infonce import InfoNCE
from clipx.objectives import slip, two_view
from clipx.objectives.image_text import ImageText
from clipx.objectives.objective import Parts
from clipx.objectives.views import ViewsConfig

CONFIGS = {
    "two_view": two_view.Config(views=VIEWS),
    "slip": slip.Config(views=VIEWS),
    "slip, shared": slip.Config(views=VIEWS, share_view=True),
}


def nt_xent_by_hand(first: Tensor, second: Tensor, scale: float) -> Tensor:
    rows = torch.cat([first, second])
    logits = (scale * rows @ rows.T).fill_diagonal_(-torch.inf)
    target = (torch.arange(len(rows)) + len(first)) % len(rows)
    return F.cross_entropy(logits, target)


def test_simclr_contrasts_the_head_of_two_views() -> None:
    objective = build(CONFIGS["two_view"])
    rows = batch()
    out = loss_of(objective, rows)
    projected = []
    for name in ("image", "image_2"):
        embedding = objective.encoder.visual(normalize(rows.views[name]))
        projected.append(F.normalize(objective.contrast.head(embedding), dim=-1))
    torch.testing.assert_close(out.loss, nt_xent_by_hand(*projected, scale=10.0))
    assert out.metrics.keys() == {"view_accuracy"}


def test_simclr_trains_the_image_tower_and_the_head_alone() -> None:
    objective = build(CONFIGS["two_view"])
    loss_of(objective, batch()).loss.backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    with_gradient = {name for name, p in objective.named_parameters() if p.grad is not None}
    assert trained == with_gradient
    assert all(name.startswith(("encoder.visual.", "contrast.head.")) for name in trained)
    own = dict(objective.own_parameters())
    assert {"contrast.head.0.weight", "contrast.log_scale"} <= own.keys()
    assert not any(name.startswith("encoder.") for name in own)


@pytest.mark.parametrize("share", [False, True])
def test_slip_is_clip_plus_simclr(share: bool) -> None:
    """Without sharing, the pair's image is the first of three; with it, the first of two."""
    config = slip.Config(views=VIEWS, view_weight=0.5, share_view=share)
    objective = build(config)
    rows = batch(num_views=2 if share else 3)
    out = loss_of(objective, rows)
    pairs = ImageText(objective.encoder, InfoNCE(), normalize=normalize)
    expected = loss_of(pairs, rows).loss
    names = ("image", "image_2") if share else ("image_2", "image_3")
    heads = []
    for name in names:
        embedding = objective.encoder.visual(normalize(rows.views[name]))
        heads.append(F.normalize(objective.contrast.head(embedding), dim=-1))
    views = nt_xent_by_hand(*heads, scale=10.0)
    torch.testing.assert_close(out.loss, expected + 0.5 * views)
    torch.testing.assert_close(out.metrics["pair_loss"], expected.detach())
    torch.testing.assert_close(out.metrics["view_loss"], views.detach())
    assert {"image_to_text_accuracy", "view_accuracy"} <= out.metrics.keys()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cfg", [MODEL, DROPOUT], ids=["", "patch dropout"])
def test_a_row_is_embedded_by_itself(name: str, cfg: dict[str, Any]) -> None:
    """What micro-batches rest on, also with random patches."""
    objective = build(CONFIGS[name], cfg, seed=3)
    views = objective.prepare(batch())
    if cfg is DROPOUT:
        num_views = len(CONFIGS[name].augmentations(Augmentation()))
        assert views["draws"].shape == (4, num_views * objective.encoder.num_draws)
    whole = objective.embed(views)
    for row in range(4):
        alone = objective.embed({key: tensor[row : row + 1] for key, tensor in views.items()})
        for key, feature in alone.items():
            torch.testing.assert_close(feature[0], whole[key][row], rtol=1e-4, atol=1e-5)


def test_views_of_a_run() -> None:
    of_run = Augmentation(scale=(0.9, 1.0))
    strong = VIEWS.augmentation
    assert strong.scale == (0.2, 1.0)
    assert strong.color_jitter_prob == 0.8
    assert CONFIGS["two_view"].augmentations(of_run) == [strong, strong]
    assert CONFIGS["slip"].augmentations(of_run) == [of_run, strong, strong]
    assert CONFIGS["slip, shared"].augmentations(of_run) == [strong, strong]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_head_is_saved_and_taken_up(name: str) -> None:
    objective = build(CONFIGS[name])
    torch.manual_seed(1)
    other = CONFIGS[name].build(Parts(model(), MODEL["embed_dim"], InfoNCE(), normalize))
    state = objective.own_state()
    assert "contrast.head.0.weight" in state
    other.load_state_dict(state, strict=False)
    for key, value in other.own_state().items():
        assert torch.equal(value, state[key])


def test_a_learned_temperature_stays_in_its_bounds() -> None:
    config = two_view.Config(views=ViewsConfig(hidden=12, width=6, learn_temperature=True))
    objective = build(config)
    with torch.no_grad():
        objective.contrast.log_scale.fill_(10.0)
    assert objective.after_step()["view_scale"].item() == pytest.approx(100)
    assert objective.contrast.log_scale.item() == pytest.approx(math.log(100))
