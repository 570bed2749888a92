"""NT-Xent, triplet, margin, hard-negative, multi-positive and Matryoshka losses against their
definitions, written over whole float64 matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks import BlockPool
from cases import Inputs, assert_same, inputs, small_tiles
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses import (
    hard_negative,
    infonce,
    margin,
    matryoshka,
    multi_positive,
    nt_xent,
    sigmoid,
    triplet,
)
from clipx.types import Loss, LossOutput, Negatives, Pool, UserError

POOLS = st.one_of(st.just(LocalPool()), st.builds(BlockPool, st.integers(1, 5), st.integers(0, 9)))


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch.setattr, rows=3, size_bytes=8 * 3 * 4, kept=1)


def run(loss: Loss, given: Inputs, pool: Pool) -> LossOutput:
    return loss(
        given.image,
        given.text,
        logit_scale=given.logit_scale,
        logit_bias=given.logit_bias,
        pool=pool,
        ids=given.ids if loss.id_kinds else None,
        negatives=given.negatives if loss.id_kinds or given.past is None else past_of(given),
    )


def past_of(given: Inputs) -> Negatives:
    """Without ids, for a loss that masks nothing."""
    assert given.past is not None
    return Negatives(given.past[0], given.past[1])


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.bool)


def directions(given: Inputs) -> list[tuple[Tensor, Tensor]]:
    """For images against texts, and texts against images: (B, B) and (B, Q) cosines."""
    none = given.image.new_zeros(0, given.image.shape[1])
    past_image, past_text = (none, none) if given.past is None else given.past[:2]
    return [
        (given.image @ given.text.T, given.image @ past_text.T),
        (given.text @ given.image.T, given.text @ past_image.T),
    ]


def differs(given: Inputs) -> tuple[Tensor, Tensor]:
    """(B, B) and (B, Q) bool: pairs without an id in common."""
    size = len(given.image)
    num_past = 0 if given.past is None else len(given.past[0])
    if given.ids is None:
        return torch.ones(size, size).bool(), torch.ones(size, num_past).bool()
    here = ~(given.ids[:, None] == given.ids[None]).any(-1)
    if given.past is None or given.past[2] is None:
        return here, torch.ones(size, num_past).bool()
    return here, ~(given.ids[:, None] == given.past[2][None]).any(-1)


def settle(value: Tensor, given: Inputs, *, bias: bool = False) -> Tensor:
    """So that each leaf has a gradient, be it 0."""
    return value + 0 * sum(leaf.sum() for leaf in given.leaves(bias=bias))


def check(actual: LossOutput, expected: Tensor, given: Inputs) -> None:
    leaves = given.leaves(bias=False)
    out = LossOutput(settle(actual.loss, given))
    assert_same(out, settle(expected, given), leaves)


@settings(deadline=None, max_examples=40)
@given(given=inputs(), pool=POOLS)
def test_nt_xent(given: Inputs, pool: Pool) -> None:
    size = len(given.image)
    rows = torch.cat([given.image, given.text])
    of_past = torch.cat([past for _, past in directions(given)])
    logits = given.logit_scale.exp() * torch.cat([rows @ rows.T, of_past], 1)
    itself = F.pad(eye(2 * size), (0, of_past.shape[1]))
    logits = logits.masked_fill(itself, -torch.inf)
    target = (torch.arange(2 * size) + size) % (2 * size)
    check(run(nt_xent.Config().build(), given, pool), F.cross_entropy(logits, target), given)


def triplet_by_hand(given: Inputs, config: triplet.Config) -> Tensor:
    unit = 2.0 if config.distance == "euclidean" else 1.0
    here, past = differs(given) if config.false_negatives != "none" else (None, None)
    total = given.image.new_zeros(())
    for inside, of_past in directions(given):
        positive = unit * (1 - inside.diagonal())[:, None]
        negative = unit * (1 - torch.cat([inside, of_past], 1))
        is_negative = torch.cat([~eye(len(inside)), torch.ones_like(of_past).bool()], 1)
        if here is not None and past is not None:
            is_negative &= torch.cat([here, past], 1)
        violation = torch.relu(config.margin + positive - negative)
        if config.mining == "hardest":
            total = total + violation.masked_fill(~is_negative, 0).amax(1).mean() / 2
            continue
        if config.mining == "semi_hard":
            is_negative &= negative > positive
        chosen = violation[is_negative & (violation > 0)]
        total = total + chosen.sum() / max(1, len(chosen)) / 2
    return total


@settings(deadline=None, max_examples=80)
@given(
    given=inputs(),
    pool=POOLS,
    mining=st.sampled_from(["hardest", "semi_hard", "all"]),
    distance=st.sampled_from(["cosine", "euclidean"]),
    margin=st.sampled_from([0.05, 0.2, 1.0]),
    mask=st.booleans(),
)
def test_triplet(
    given: Inputs, pool: Pool, mining: Any, distance: Any, margin: float, mask: bool
) -> None:
    masks = mask and given.ids is not None
    config = triplet.Config(
        margin=margin,
        mining=mining,
        distance=distance,
        false_negatives="caption" if masks else "none",
    )
    check(run(config.build(), given, pool), triplet_by_hand(given, config), given)


def hard_negative_by_hand(given: Inputs, beta: float, tau_plus: float) -> Tensor:
    """As in the papers' own code: `imp`, `reweight_neg` and `Ng`."""
    scale = given.logit_scale.exp()
    total = given.image.new_zeros(())
    for inside, of_past in directions(given):
        size = len(inside)
        logits = scale * torch.cat([inside[~eye(size)].view(size, size - 1), of_past], 1)
        positive = scale * inside.diagonal()
        count = logits.shape[1]
        if count == 0:
            return given.image.new_zeros(())
        # relative to the largest logit, which cancels in the quotient
        top = logits.amax(1, keepdim=True).detach()
        importance = (beta * (logits - top)).exp()
        reweighted = (importance * (logits - top).exp()).sum(1) / importance.mean(1)
        top = top[:, 0]
        negatives = reweighted - tau_plus * count * (positive - top).exp()
        negatives = negatives / (1 - tau_plus)
        negatives = torch.maximum(negatives, count * (-scale - top).exp())
        total = total + (torch.logaddexp(positive, negatives.log() + top) - positive).mean() / 2
    return total


@settings(deadline=None, max_examples=50)
@given(
    given=inputs(),
    pool=POOLS,
    beta=st.sampled_from([0.0, 0.5, 2.0]),
    tau_plus=st.sampled_from([0.0, 0.05, 0.4]),
)
def test_hard_negative(given: Inputs, pool: Pool, beta: float, tau_plus: float) -> None:
    loss = hard_negative.Config(beta=beta, tau_plus=tau_plus).build()
    check(run(loss, given, pool), hard_negative_by_hand(given, beta, tau_plus), given)


def test_without_weights_hard_negative_is_infonce() -> None:
    given = Inputs.draw(9, num_past=4)
    expected = run(infonce.Config().build(), given, LocalPool()).loss
    loss = hard_negative.Config(beta=0.0).build()
    check(run(loss, given, LocalPool()), expected, given)


def multi_positive_by_hand(given: Inputs, image_image: float) -> Tensor:
    assert given.ids is not None
    scale = given.logit_scale.exp()
    is_positive = given.ids == given.ids.T
    _, past_counts = differs(given)
    total = given.image.new_zeros(())
    for inside, of_past in directions(given):
        logits = scale * inside
        past = (scale * of_past).masked_fill(~past_counts, -torch.inf)
        log_prob = logits - torch.cat([logits, past], 1).logsumexp(1, keepdim=True)
        mean = (log_prob * is_positive).sum(1) / is_positive.sum(1)
        total = total - mean.mean() / 2
    if image_image:
        size = len(given.image)
        logits = (scale * given.image @ given.image.T).masked_fill(eye(size), -torch.inf)
        others = is_positive & ~eye(size)
        rows = []
        for i in range(size):
            if others[i].any():
                log_prob = logits[i][others[i]] - logits[i].logsumexp(0)
                rows.append(-log_prob.mean())
        if rows:
            total = total + image_image * torch.stack(rows).sum() / size
    return total


@settings(deadline=None, max_examples=50)
@given(
    given=inputs().filter(lambda case: case.ids is not None and case.ids.shape[1] == 1),
    pool=POOLS,
    image_image=st.sampled_from([0.0, 0.7]),
)
def test_multi_positive(given: Inputs, pool: Pool, image_image: float) -> None:
    loss = multi_positive.Config(image_image=image_image).build()
    check(run(loss, given, pool), multi_positive_by_hand(given, image_image), given)


def test_multi_positive_without_equal_concepts_is_infonce() -> None:
    given = Inputs.draw(7)
    expected = run(infonce.Config().build(), given, LocalPool()).loss
    out = multi_positive.Config().build()(
        given.image,
        given.text,
        logit_scale=given.logit_scale,
        pool=LocalPool(),
        ids=torch.arange(7)[:, None],
    )
    check(out, expected, given)


def distances(rows: Tensor, columns: Tensor) -> Tensor:
    """(B, N) Euclidean. Equal rows have the distance 0, and no gradient."""
    squared = 2 - 2 * rows @ columns.T
    is_zero = squared < 16 * torch.finfo(squared.dtype).eps
    return squared.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


def margin_by_hand(given: Inputs, size: float) -> Tensor:
    assert given.ids is not None
    here, past_counts = differs(given)
    distance = distances(given.image, given.text)
    is_positive = eye(len(distance)) | ~here
    negative = [distance[~is_positive]]
    if given.past is not None:
        for rows, columns in ((given.image, given.past[1]), (given.text, given.past[0])):
            negative.append(distances(rows, columns)[past_counts])
    positives = (2 - 2 * given.image @ given.text.T)[is_positive]
    negatives = torch.relu(size - torch.cat(negative)).square()
    return positives.mean() + negatives.sum() / max(1, len(negatives))


@settings(deadline=None, max_examples=50)
@given(
    given=inputs().filter(lambda case: case.ids is not None and case.ids.shape[1] == 1),
    pool=POOLS,
    size=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_margin_of_all_pairs(given: Inputs, pool: Pool, size: float) -> None:
    loss = margin.Config(margin=size, pairs="all").build()
    check(run(loss, given, pool), margin_by_hand(given, size), given)


def labeled(given: Inputs, labels: Tensor, size: float = 1.0) -> LossOutput:
    loss = margin.Config(margin=size).build()
    return loss(given.image, given.text, pool=LocalPool(), ids=labels[:, None])


@settings(deadline=None, max_examples=30)
@given(given=inputs(), size=st.sampled_from([0.3, 1.0, 2.0]), seed=st.integers(0, 99))
def test_margin_of_labeled_pairs(given: Inputs, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (len(given.image),), generator=generator)
    total = given.image.new_zeros(())
    for image, text, label in zip(given.image, given.text, labels, strict=True):
        if label == 1:
            total = total + (image - text).square().sum()
        elif not torch.equal(image, text):
            total = total + torch.relu(size - (image - text).norm()).square()
        else:
            total = total + size**2
    check(labeled(given, labels, size), total / len(labels), given)


def test_equal_rows_of_a_negative_pair_have_no_direction_to_part() -> None:
    given = Inputs.draw(3, noise=0.0)
    out = labeled(given, torch.tensor([0, 0, 0]), 0.5)
    assert out.loss.item() == 0.25
    for gradient in torch.autograd.grad(out.loss, [given.image, given.text]):
        assert gradient.abs().max() == 0


def test_labels_other_than_0_and_1_are_refused() -> None:
    with pytest.raises(UserError, match=r"the label of a pair is 7, .* set loss\.pairs=all"):
        labeled(Inputs.draw(3), torch.tensor([0, 7, 1]))


def test_classes_as_concepts_are_those_of_their_ids() -> None:
    """SupCon by class: the objective delivers labels in place of captions' ids."""
    given = Inputs.draw(8, kinds=1)
    for module in (multi_positive, margin):
        options = {"pairs": "all"} if module is margin else {}
        by_label = module.Config(concept="label", **options).build()
        assert by_label.id_kinds == ("label",)
        expected = run(module.Config(**options).build(), given, LocalPool()).loss
        check(run(by_label, given, LocalPool()), expected, given)


@settings(deadline=None, max_examples=20)
@given(given=inputs(), pool=POOLS)
def test_matryoshka(given: Inputs, pool: Pool) -> None:
    inner = infonce.Config()
    loss = matryoshka.Config(widths={8: 1.0, 4: 0.5, 2: 2.0}, loss=inner).build()
    out = run(loss, given, pool)
    expected = given.image.new_zeros(())
    for width, weight in ((8, 1.0), (4, 0.5), (2, 2.0)):
        for inside, of_past in cut_directions(given, width):
            logits = given.logit_scale.exp() * torch.cat([inside, of_past], 1)
            expected = expected + weight * F.cross_entropy(logits, torch.arange(len(inside))) / 2
    check(out, expected, given)
    assert {"image_to_text_accuracy", "loss_at_8", "loss_at_4", "loss_at_2"} == out.metrics.keys()


def cut_directions(given: Inputs, width: int) -> list[tuple[Tensor, Tensor]]:
    def cut(rows: Tensor) -> Tensor:
        return rows[:, :width] / rows[:, :width].norm(dim=1, keepdim=True)

    none = given.image.new_zeros(0, 8)
    past_image, past_text = (none, none) if given.past is None else given.past[:2]
    image, text = cut(given.image), cut(given.text)
    return [
        (image @ text.T, image @ cut(past_text).T),
        (text @ image.T, text @ cut(past_image).T),
    ]


def test_matryoshka_wants_what_its_loss_wants() -> None:
    masked = infonce.Config(false_negatives="both")
    assert matryoshka.Config(widths={4: 1.0}, loss=masked).build().id_kinds == ("caption", "image")
    assert matryoshka.Config(widths={4: 1.0}, loss=sigmoid.Config()).build().needs_logit_bias


def test_a_width_beyond_the_embedding_is_refused() -> None:
    loss = matryoshka.Config(widths={16: 1.0}, loss=infonce.Config()).build()
    with pytest.raises(UserError, match=r"loss\.widths: 16 is more than the model's embed_dim 8"):
        run(loss, Inputs.draw(3), LocalPool())


EACH: dict[str, Callable[[], Loss]] = {
    "nt_xent": nt_xent.Config().build,
    "hardest": triplet.Config().build,
    "semi_hard": triplet.Config(mining="semi_hard").build,
    "all": triplet.Config(mining="all").build,
    "margin": margin.Config(pairs="all").build,
    "hard_negative": hard_negative.Config(beta=1.0, tau_plus=0.1).build,
    "multi_positive": multi_positive.Config(image_image=1.0).build,
}


def run_with_ids(loss: Loss, given: Inputs) -> LossOutput:
    return loss(
        given.image,
        given.text,
        logit_scale=given.logit_scale,
        logit_bias=None,
        pool=LocalPool(),
        ids=torch.arange(len(given.image))[:, None] if loss.id_kinds else None,
    )


def test_one_row_has_a_positive_pair_for_the_margin_loss() -> None:
    given = Inputs.draw(1)
    expected = 2 - 2 * (given.image * given.text).sum()
    check(run_with_ids(EACH["margin"](), given), expected, given)


@pytest.mark.parametrize("name", [name for name in EACH if name != "margin"])
def test_one_row_has_no_negatives_so_nothing_to_learn(name: str) -> None:
    given = Inputs.draw(1)
    out = run_with_ids(EACH[name](), given)
    assert out.loss.item() == pytest.approx(0, abs=1e-12)
    for gradient in torch.autograd.grad(settle(out.loss, given), given.leaves(bias=False)):
        assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize("name", EACH)
def test_equal_rows_have_a_finite_loss_and_gradient(name: str) -> None:
    """A model that has collapsed."""
    given = Inputs.draw(6, scale=100.0, dtype=torch.float32)
    row = given.image[:1].detach()
    image = row.repeat(6, 1).requires_grad_()
    text = row.repeat(6, 1).requires_grad_()
    same = Inputs(image, text, given.logit_scale, given.logit_bias, None, None)
    out = run_with_ids(EACH[name](), same)
    assert out.loss.isfinite()
    for gradient in torch.autograd.grad(settle(out.loss, same), same.leaves(bias=False)):
        assert gradient.isfinite().all()


def test_a_triplet_of_the_batch_has_no_candidates_of_other_ranks() -> None:
    class OtherRanks(LocalPool):
        def share(self, *rows: Tensor) -> Any:
            raise AssertionError("nothing is shared")

    given = Inputs.draw(5)
    loss = triplet.Config(scope="batch").build()
    expected = triplet_by_hand(given, triplet.Config())
    check(run(loss, given, OtherRanks()), expected, given)


def test_logits_of_a_hundred_stay_exact_in_float32() -> None:
    single = Inputs.draw(12, scale=100.0, noise=0.05, dtype=torch.float32)
    double = Inputs.draw(12, scale=100.0, noise=0.05)
    for name in ("nt_xent", "hard_negative", "multi_positive"):
        actual = run_with_ids(EACH[name](), single).loss
        expected = run_with_ids(EACH[name](), double).loss
        assert actual.dtype == torch.float32
        assert math.isclose(actual.item(), expected.item(), rel_tol=1e-4, abs_tol=1e-4)
