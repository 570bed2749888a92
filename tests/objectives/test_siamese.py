"""Pairs of images or of texts by one tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import infonce_rows
from stepping import PATCH_DROPOUT, model
from tiny_runs import MODEL
from torch import Tensor
from torch.nn import functional as F

from clipx.data.augment import Augmentation
from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.losses import infonce, multi_positive
from clipx.objectives import siamese
from clipx.objectives.objective import Objective, Parts, data_use
from clipx.types import Batch, UserError

END = MODEL["text_cfg"]["vocab_size"] - 1
KINDS = ("images", "texts")


def batch(rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views: dict[str, Tensor] = {"label": torch.tensor([3, 1, 3, 2][:rows])}
    for name in ("image", "image_2"):
        pixels = torch.randint(0, 256, (rows, 3, 32, 32), generator=generator)
        views[name] = pixels.to(torch.uint8)
    for name, length in (("text", 5), ("text_2", 7)):
        views[name] = torch.randint(1, 40, (rows, length), generator=generator)
        views[name][:, -1] = END
    return Batch(views, [str(row) for row in range(rows)], list(range(rows)), {})


def build(kind: Any, cfg: dict[str, Any] = MODEL, loss: Any = None, **parts: Any) -> Objective:
    chosen = (loss or infonce.Config()).build()
    objective = siamese.Config(of=kind).build(
        Parts(model(cfg), cfg["embed_dim"], chosen, normalize, **parts)
    )
    objective.lock_unused()
    return objective


def loss_of(objective: Objective, rows: Batch) -> Any:
    return objective.loss(objective.embed(objective.prepare(rows)), LocalPool())


def embedded(objective: Objective, rows: Batch, kind: str) -> list[Tensor]:
    encoder = objective.encoder
    if kind == "texts":
        return [encoder.encode_text(rows.views[name]) for name in ("text", "text_2")]
    pixels = [normalize(rows.views[name]) for name in ("image", "image_2")]
    return [F.normalize(encoder.visual(x), dim=-1) for x in pixels]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_contrasts_firsts_with_seconds(kind: str) -> None:
    objective = build(kind)
    rows = batch()
    first, second = embedded(objective, rows, kind)
    expected = infonce_rows(first, second, objective.encoder.logit_scale).mean()
    torch.testing.assert_close(loss_of(objective, rows).loss, expected.float())


@pytest.mark.parametrize("kind", KINDS)
def test_one_tower_and_the_temperature_are_trained(kind: str) -> None:
    objective = build(kind)
    loss_of(objective, batch()).loss.backward()
    parameters = dict(objective.named_parameters())
    trained = {name for name, p in parameters.items() if p.requires_grad}
    assert trained == {name for name, p in parameters.items() if p.grad is not None}
    tower = "visual" if kind == "images" else "text"
    assert {name.split(".")[1] for name in trained} == {tower, "logit_scale"}


@pytest.mark.parametrize("cfg", [MODEL, PATCH_DROPOUT], ids=["", "patch dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_embedded_by_itself(kind: str, cfg: dict[str, Any]) -> None:
    """What micro-batches rest on, also with random patches, other ones for each image."""
    objective = build(kind, cfg, seed=3)
    views = objective.prepare(batch())
    if cfg is PATCH_DROPOUT and kind == "images":
        assert views["draws"].shape == (4, 2 * objective.encoder.num_draws)
    whole = objective.embed(views)
    for row in range(4):
        alone = objective.embed({key: tensor[row : row + 1] for key, tensor in views.items()})
        for key, feature in alone.items():
            torch.testing.assert_close(feature[0], whole[key][row], rtol=1e-4, atol=1e-5)


def test_repeated_firsts_and_seconds_are_no_negatives() -> None:
    """`both` masks rows with the same first text or the same second one."""
    rows = batch()
    rows.views["text"][1] = rows.views["text"][0]
    rows.views["text_2"][3] = rows.views["text_2"][2]
    for masked, equal in (
        ("image", {(0, 1)}),
        ("caption", {(2, 3)}),
        ("both", {(0, 1), (2, 3)}),
    ):
        objective = build("texts", loss=infonce.Config(false_negatives=masked))
        ids = objective.prepare(rows)["ids"]
        found = set()
        for i in range(4):
            for j in range(i + 1, 4):
                if (ids[i] == ids[j]).any():
                    found.add((i, j))
        assert found == equal
        first, second = embedded(objective, rows, "texts")
        scale = objective.encoder.logit_scale
        expected = infonce_rows(first, second, scale, ids=ids).mean()
        torch.testing.assert_close(loss_of(objective, rows).loss, expected.float())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_label_are_positives(kind: str) -> None:
    """UniCL by the whole matrix of logits."""
    objective = build(kind, loss=multi_positive.Config(concept="label"))
    rows = batch()
    first, second = embedded(objective, rows, kind)
    logits = objective.encoder.logit_scale.exp() * first @ second.T
    label = rows.views["label"]
    positive = (label[:, None] == label[None]).float()
    share = positive / positive.sum(1, keepdim=True)
    sides = [-(share * side.log_softmax(1)).sum(1).mean() for side in (logits, logits.T)]
    torch.testing.assert_close(loss_of(objective, rows).loss, (sides[0] + sides[1]) / 2)


def test_rows_of_earlier_steps_are_further_negatives() -> None:
    objective = build("texts", queue=4)
    first, second = embedded(objective, batch(), "texts")
    loss_of(objective, batch())
    out = loss_of(objective, batch())
    past = (first.detach(), second.detach(), None)
    scale = objective.encoder.logit_scale
    expected = infonce_rows(first, second, scale, past=past).mean()
    torch.testing.assert_close(out.loss, expected.float())


def test_pairs_of_images_have_no_captions_to_compare() -> None:
    with pytest.raises(UserError, match=r"by caption, and pairs of images.*concept=label"):
        build("images", loss=multi_positive.Config(concept="caption"))
    with pytest.raises(UserError, match="by caption and image"):
        build("images", loss=infonce.Config(false_negatives="both"))


def test_what_it_takes_of_the_data() -> None:
    of_run = Augmentation(flip=0.5)
    images, texts = (siamese.Config(of=kind) for kind in KINDS)
    assert images.augmentations(of_run) == [of_run, of_run]
    assert texts.augmentations(of_run) == []
    assert [data_use(config).pair_kind for config in (images, texts)] == list(KINDS)
