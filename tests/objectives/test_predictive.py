"""CPC: rows of patches predict later rows."""

from __future__ import annotations

import pytest
import torch
from methods import DROPOUT, VIEWS, batch, build, loss_of
from torch.nn import functional as F

from clipx.objectives import predictive
from clipx.objectives.predictive import cut, drop_colors

CPC = predictive.Config(views=VIEWS, grid=4)


def test_patches_are_pieces_of_the_image_row_by_row() -> None:
    image = torch.arange(2 * 3 * 12 * 12, dtype=torch.float32).view(2, 3, 12, 12)
    patches = cut(image, 3).view(2, 9, 3, 12, 12)
    for number in range(9):
        top, left = 3 * (number // 3), 3 * (number % 3)
        piece = image[:, :, top : top + 6, left : left + 6]
        assert torch.equal(patches[:, number].mean((2, 3)), piece.mean((2, 3)))
    assert cut(torch.zeros(1, 3, 32, 32), 4).shape == (16, 3, 32, 32)


def test_each_prediction_is_compared_with_the_patches_of_its_rows_in_all_images() -> None:
    objective = build(CPC)
    rows = batch(num_views=1)
    features = objective.embed(objective.prepare(rows))
    target = features["target"]
    assert target.shape == (4, 16, VIEWS.width)
    assert features.keys() == {"target", "ahead_2", "ahead_3"}
    total = []
    for k in (2, 3):
        predictions = features[f"ahead_{k}"]
        assert predictions.shape == (4, (4 - k) * 4, VIEWS.width)
        for image in range(4):
            for patch in range((4 - k) * 4):
                # the patch k rows below, among those of all images in the rows from k on
                candidates = target[:, 4 * k :].reshape(-1, VIEWS.width)
                logits = candidates @ predictions[image, patch] / VIEWS.temperature
                own = image * (4 - k) * 4 + patch
                total.append(F.cross_entropy(logits[None], torch.tensor([own])))
    out = loss_of(objective, rows)
    torch.testing.assert_close(out.loss, torch.stack(total).mean())


def test_one_channel_is_left_of_the_share_of_patches_that_is_asked_for() -> None:
    patches = torch.randn(6, 3, 4, 4)
    draws = torch.tensor([0.0, 0.3, 0.5, 0.59, 0.6, 0.99])
    dropped = drop_colors(patches, draws, 0.6)
    for patch, channel in enumerate((0, 1, 2, 2)):
        assert torch.equal(dropped[patch], patches[patch, channel].expand(3, 4, 4))
    assert torch.equal(dropped[4:], patches[4:])
    assert drop_colors(patches, draws, 0) is patches


def test_the_colors_of_a_patch_depend_on_its_position_in_the_run() -> None:
    objective = build(CPC)
    views = objective.prepare(batch(num_views=1))
    draws = views["color_draws"]
    assert draws.shape == (4, 16)
    assert draws.unique().numel() == draws.numel()
    assert torch.equal(draws, objective.prepare(batch(num_views=1))["color_draws"])


@pytest.mark.parametrize("row", [2, 3])
def test_a_prediction_shares_no_pixel_with_what_it_predicts(row: int) -> None:
    """Rows of patches of 32 pixels begin at 0, 6, 12 and 18, and are 12 high."""
    objective = build(CPC)
    image = batch(num_views=1).views["image"].float() / 255
    changed = image.clone()
    changed[:, :, 6 * row :] = 0.5
    features = []
    for pixels in (image, changed):
        with torch.no_grad():
            patches = objective.encoder.visual(cut(pixels, 4)).unflatten(0, (4, 16))
            features.append(objective.predictor(patches))
    before, after = features
    assert not torch.equal(before["target"][:, 4 * row :], after["target"][:, 4 * row :])
    for k in range(2, row + 1):
        first = 4 * (row - k)  # of the predictions of this row
        predictions = slice(first, first + 4)
        assert torch.equal(
            before[f"ahead_{k}"][:, predictions], after[f"ahead_{k}"][:, predictions]
        )


def test_every_patch_has_draws_of_its_own() -> None:
    objective = build(CPC, DROPOUT)
    views = objective.prepare(batch(num_views=1))
    assert views["draws"].shape == (4, 16 * objective.encoder.num_draws)
    whole = objective.embed(views)
    for row in range(4):
        alone = objective.embed({name: view[row : row + 1] for name, view in views.items()})
        for name, feature in alone.items():
            torch.testing.assert_close(feature[0], whole[name][row], rtol=1e-4, atol=1e-5)


def test_every_trained_parameter_has_a_gradient() -> None:
    objective = build(CPC)
    loss_of(objective, batch(num_views=1)).loss.backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in objective.named_parameters() if p.grad is not None}
