"""Momentum contrast: MoCo over views of an image, and a queue of keys for image-text pairs."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from methods import VIEWS, batch, build, loss_of
from stepping import model
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.data.preprocessing import normalize
from clipx.losses.infonce import InfoNCE
from clipx.objectives import momentum, momentum_pairs
from clipx.objectives.momentum_copy import MomentumCopy
from clipx.objectives.objective import Parts
from clipx.types import UserError

MOCO = momentum.Config(views=VIEWS, momentum=0.9, queue=6)
V3 = momentum.Config(views=VIEWS, momentum=0.9, queue=0, symmetric=True, predictor=True)


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1)


def test_a_query_is_compared_with_keys_of_the_batch_and_of_the_queue() -> None:
    """Three steps of plain gradient descent, with averages kept by hand."""
    objective = build(MOCO)
    tower = deepcopy(objective.encoder.visual)
    head = deepcopy(objective.contrast.head)
    keys = torch.zeros(0, VIEWS.width)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        rows = batch(seed=step)
        first, second = (normalize(rows.views[name]) for name in ("image", "image_2"))
        query = unit(objective.contrast.head(objective.encoder.visual(first)))
        key = unit(head(tower(second))).detach()
        logits = query @ torch.cat([key, keys]).T / VIEWS.temperature
        out = loss_of(objective, rows)
        torch.testing.assert_close(out.loss, F.cross_entropy(logits, torch.arange(4)))
        keys = torch.cat([keys, key])[-6:]  # the newest last

        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        objective.after_step()
        for average, live in ((tower, objective.encoder.visual), (head, objective.contrast.head)):
            with torch.no_grad():
                for old, new in zip(average.parameters(), live.parameters(), strict=True):
                    old.copy_(0.9 * old + 0.1 * new)
    torch.testing.assert_close(objective.queue.rows(torch.device("cpu"))["key"], keys)


def test_without_a_queue_both_views_are_queries_and_keys() -> None:
    objective = build(V3)
    rows = batch()
    out = loss_of(objective, rows)
    embeddings = [objective.encoder.visual(normalize(rows.views[n])) for n in ("image", "image_2")]
    projected = [objective.contrast.head(embedding) for embedding in embeddings]
    queries = [unit(objective.predictor(rows)) for rows in projected]
    keys = [unit(rows).detach() for rows in projected]  # the averages have not moved yet
    expected = torch.zeros(())
    for query, key in zip(queries, reversed(keys), strict=True):
        logits = query @ key.T / VIEWS.temperature
        expected = expected + F.cross_entropy(logits, torch.arange(4)) / 2
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("config", [MOCO, V3])
def test_only_queries_are_trained(config: momentum.Config) -> None:
    objective = build(config)
    loss_of(objective, batch()).loss.backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in objective.named_parameters() if p.grad is not None}
    parts = ("encoder.visual.", "contrast.head.", "predictor.")
    assert all(name.startswith(parts) for name in trained)


def test_keys_and_averages_are_saved_and_taken_up() -> None:
    objective = build(MOCO)
    loss_of(objective, batch())
    with torch.no_grad():
        objective.contrast.head[0].weight.add_(1.0)
    objective.after_step()
    state = objective.own_state()
    assert {"queue._extra_state", "key_head.average.0.weight"} <= state.keys()
    other = build(MOCO)
    other.load_state_dict(state, strict=False)
    rows = batch(seed=1)
    features, expected = (o.embed(o.prepare(rows)) for o in (other, objective))
    assert torch.equal(features["key"], expected["key"])
    queue, expected_queue = (o.queue.rows(rows.views["image"].device) for o in (other, objective))
    assert torch.equal(queue["key"], expected_queue["key"])


def test_keys_are_computed_without_dropout() -> None:
    source = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    copy = MomentumCopy(source, 0.5)
    nn.ModuleList([source, copy]).train()
    assert source.training
    rows = torch.randn(4, 3)
    assert torch.equal(copy(rows), source[0](rows))
    with torch.no_grad():
        source[0].weight.zero_()
    before = copy.average[0].weight.clone()
    copy.update()
    torch.testing.assert_close(copy.average[0].weight, before / 2)


def test_a_queue_larger_than_the_corpus_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.queue 6 is more than the 5 samples"):
        build(MOCO, num_samples=5)


def test_the_queue_of_pairs_has_the_keys_of_the_averages() -> None:
    objective = build(momentum_pairs.Config(momentum=0.9), queue=6)
    average = deepcopy(objective.encoder)
    kept = []
    for step in range(3):
        rows = batch(num_views=1, seed=step)
        image = normalize(rows.views["image"])
        features = objective.embed(objective.prepare(rows))
        with torch.no_grad():
            kept.append((average.encode_image(image), average.encode_text(rows.views["text"])))
        torch.testing.assert_close(features["key_image"], kept[-1][0])
        torch.testing.assert_close(features["key_text"], kept[-1][1])
        out = loss_of(objective, rows)
        past = [torch.cat(part)[-6:] for part in zip(*kept[:-1], strict=True)] if step else []
        live = [features["image"], features["text"]]
        scale = objective.encoder.logit_scale.exp()
        expected = torch.zeros(())
        for own, others in ((0, 1), (1, 0)):
            candidates = torch.cat([live[others], *past[others : others + 1]])
            logits = scale * live[own] @ candidates.T
            expected = expected + F.cross_entropy(logits, torch.arange(4)) / 2
        torch.testing.assert_close(out.loss, expected)
        with torch.no_grad():
            for parameter in objective.encoder.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
            objective.after_step()
            for old, new in zip(average.parameters(), objective.encoder.parameters(), strict=True):
                old.copy_(0.9 * old + 0.1 * new)


def test_pairs_without_a_queue_are_refused() -> None:
    parts = Parts(model(), 16, InfoNCE(), normalize)
    with pytest.raises(UserError, match=r"fills pool\.queue, which is 0"):
        momentum_pairs.Config().build(parts)
