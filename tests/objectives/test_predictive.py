"""CPC: rows of patches predict later rows."""

from __future__ import annotations

import torch
from methods import DROPOUT, VIEWS, batch, build, loss_of
from torch.nn import functional as F

from clipx.objectives import predictive
from clipx.objectives.predictive import cut

CPC = predictive.Config(views=VIEWS, grid=3)


def test_patches_are_pieces_of_the_image_row_by_row() -> None:
    image = torch.arange(2 * 3 * 12 * 12, dtype=torch.float32).view(2, 3, 12, 12)
    patches = cut(image, 3).view(2, 9, 3, 12, 12)
    for number in range(9):
        top, left = 4 * (number // 3), 4 * (number % 3)
        piece = image[:, :, top : top + 4, left : left + 4]
        assert torch.equal(patches[:, number].mean((2, 3)), piece.mean((2, 3)))
    assert cut(torch.zeros(1, 3, 32, 32), 3).shape == (9, 3, 32, 32)


def test_each_prediction_is_compared_with_the_patches_of_its_rows_in_all_images() -> None:
    objective = build(CPC)
    rows = batch(num_views=1)
    features = objective.embed(objective.prepare(rows))
    target = features["target"]
    assert target.shape == (4, 9, VIEWS.width)
    total = []
    for k in (1, 2):
        predictions = features[f"ahead_{k}"]
        assert predictions.shape == (4, (3 - k) * 3, VIEWS.width)
        for image in range(4):
            for patch in range((3 - k) * 3):
                # the patch k rows below, among those of all images in the rows from k on
                candidates = target[:, 3 * k :].reshape(-1, VIEWS.width)
                logits = candidates @ predictions[image, patch] / VIEWS.temperature
                own = image * (3 - k) * 3 + patch
                total.append(F.cross_entropy(logits[None], torch.tensor([own])))
    out = loss_of(objective, rows)
    torch.testing.assert_close(out.loss, torch.stack(total).mean())


def test_a_prediction_depends_on_its_own_row_and_those_above_alone() -> None:
    objective = build(CPC)
    image = batch(num_views=1).views["image"].float() / 255
    changed = image.clone()
    changed[:, :, 20:] = 0.5  # inside of the last row of patches, which begins at pixel 20
    with torch.no_grad():
        before, after = (
            objective.predictor(objective.encoder.visual(cut(x, 3)).unflatten(0, (4, 9)))
            for x in (image, changed)
        )
    for k, known_rows in ((1, 2), (2, 1)):
        assert torch.equal(before[f"ahead_{k}"], after[f"ahead_{k}"]), known_rows
    assert torch.equal(before["target"][:, :6], after["target"][:, :6])
    assert not torch.equal(before["target"][:, 6:], after["target"][:, 6:])


def test_every_patch_has_draws_of_its_own() -> None:
    objective = build(CPC, DROPOUT)
    views = objective.prepare(batch(num_views=1))
    assert views["draws"].shape == (4, 9 * objective.encoder.num_draws)
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
