"""InfoNCE with moving averages of its normalizers against its definition, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from blocks import BlockPool
from cases import EXACT, Inputs, small_tiles
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from clipx.config import build
from clipx.distributed.pool import LocalPool
from clipx.losses import infonce, matryoshka
from clipx.losses.global_normalizer import GlobalNormalizer
from clipx.losses.infonce import InfoNCE
from clipx.types import LossOutput, Pool, UserError

POOLS = st.one_of(st.just(LocalPool()), st.builds(BlockPool, st.integers(1, 5), st.integers(0, 9)))


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch.setattr, rows=3, size_bytes=8 * 3 * 4, kept=1)


def new_loss(gamma: float, epsilon: float | None = 1e-14, rho: float | None = None) -> InfoNCE:
    return infonce.Config(global_normalizer=GlobalNormalizer(gamma, epsilon, rho)).build()


def run(loss: InfoNCE, inputs: Inputs, samples: Tensor, pool: Pool) -> LossOutput:
    return loss(
        inputs.image,
        inputs.text,
        logit_scale=inputs.logit_scale,
        pool=pool,
        ids=samples[:, None],
    )


class Reference:
    """A dictionary of averages for each direction, and the whole matrix."""

    def __init__(self, gamma: float, epsilon: float, rho: float | None) -> None:
        self.gamma = gamma
        self.epsilon = epsilon
        self.rho = rho
        self.averages: list[dict[int, float]] = [{}, {}]

    def step(self, inputs: Inputs, samples: Tensor) -> tuple[float, list[Tensor]]:
        """(value, gradients of image, text and logit_scale)"""
        scale = inputs.logit_scale.exp()
        logits = scale * inputs.image @ inputs.text.T
        size = len(logits)
        # n / (epsilon + u), whose gradient is that of the loss
        quotient = torch.zeros_like(scale)
        log_average = 0.0
        for averages, directed in zip(self.averages, (logits, logits.T), strict=True):
            ratios = (directed - directed.diagonal()[:, None]).exp()
            itself = torch.eye(size, dtype=torch.bool)
            estimates = ratios.masked_fill(itself, 0).sum(1) / (size - 1)
            new = {}
            for i, sample in enumerate(samples.tolist()):
                value = estimates[i].item()
                if sample in averages:
                    value = (1 - self.gamma) * averages[sample] + self.gamma * value
                total = self.epsilon + value
                quotient = quotient + estimates[i] / total / (2 * size)
                log_average += math.log(total) / (2 * size)
                # The state is float32, of the logarithm.
                new[sample] = math.exp(torch.tensor(math.log(value)).item())
            averages.update(new)
        value = log_average + math.log(size - 1)
        total = quotient
        if self.rho is not None:
            # t (log u + rho), with the derivative of log u that n / u has
            total = (quotient - quotient.detach() + log_average + self.rho) / scale
            value = total.item()
        leaves = inputs.leaves(bias=False)
        return value, list(torch.autograd.grad(total, leaves))


@settings(deadline=None, max_examples=60)
@given(
    pool=POOLS,
    size=st.integers(2, 9),
    steps=st.integers(1, 4),
    gamma=st.sampled_from([0.1, 0.5, 1.0]),
    epsilon=st.sampled_from([1e-14, 0.1]),
    rho=st.sampled_from([None, 6.5]),
    scale=st.sampled_from([1.0, 1 / 0.07, 30.0]),
    seed=st.integers(0, 1000),
)
def test_value_and_gradient_equal_the_definition_in_each_step(
    pool: Pool,
    size: int,
    steps: int,
    gamma: float,
    epsilon: float,
    rho: float | None,
    scale: float,
    seed: int,
) -> None:
    """Also where a sample is twice in a batch."""
    loss = new_loss(gamma, epsilon, rho)
    reference = Reference(gamma, epsilon, rho)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        inputs = Inputs.draw(size, scale=scale, seed=seed + step)
        samples = torch.randint(0, 2 * size, (size,), generator=generator)
        value, gradients = reference.step(inputs, samples)
        out = run(loss, inputs, samples, pool).loss
        assert out.item() == pytest.approx(value, rel=1e-10, abs=1e-12)
        actual = torch.autograd.grad(out, inputs.leaves(bias=False))
        for gradient, expected in zip(actual, gradients, strict=True):
            torch.testing.assert_close(gradient, expected, **EXACT)


def test_with_the_newest_estimate_alone_and_the_positive_it_is_infonce() -> None:
    loss = new_loss(1.0, epsilon=None)
    for seed in range(3):
        inputs = Inputs.draw(8, scale=100.0, seed=seed)
        out = run(loss, inputs, torch.arange(8), LocalPool()).loss
        scale = inputs.logit_scale
        plain = InfoNCE()(inputs.image, inputs.text, logit_scale=scale, pool=LocalPool()).loss
        torch.testing.assert_close(out, plain, **EXACT)
        leaves = inputs.leaves(bias=False)
        expected = torch.autograd.grad(plain, leaves)
        for gradient, of_plain in zip(torch.autograd.grad(out, leaves), expected, strict=True):
            torch.testing.assert_close(gradient, of_plain, **EXACT)


def test_averages_bring_the_gradient_of_small_batches_near_that_of_all_samples() -> None:
    """What they are for: batches of 4 of 32 samples, whose features stay as they are."""
    inputs = Inputs.draw(32, scale=10.0, noise=1.0)
    leaves = inputs.leaves(bias=False)
    whole = InfoNCE()(
        inputs.image, inputs.text, logit_scale=inputs.logit_scale, pool=LocalPool()
    ).loss
    target = torch.cat([g.flatten() for g in torch.autograd.grad(whole, leaves)])
    errors = []
    # InfoNCE of each batch; then averages, with the positive's share among all 32
    for gamma, epsilon in ((1.0, None), (0.05, 1 / 31)):
        loss = new_loss(gamma, epsilon)
        generator = torch.Generator().manual_seed(0)
        gradient = torch.zeros_like(target)
        epochs, skipped = 60, 30
        for epoch in range(epochs):
            for samples in torch.randperm(32, generator=generator).split(4):
                image, text = inputs.image[samples], inputs.text[samples]
                part = loss(
                    image,
                    text,
                    logit_scale=inputs.logit_scale,
                    pool=LocalPool(),
                    ids=samples[:, None],
                ).loss
                if epoch >= skipped:
                    grads = torch.autograd.grad(part, leaves)
                    gradient += torch.cat([g.flatten() for g in grads]) / (8 * (epochs - skipped))
        errors.append((gradient - target).norm().item())
    assert errors[1] < errors[0] / 2, errors


def test_one_row_has_no_negatives_so_nothing_to_learn() -> None:
    inputs = Inputs.draw(1)
    for epsilon in (1e-14, None):
        out = run(new_loss(0.5, epsilon), inputs, torch.tensor([0]), LocalPool()).loss
        assert out.item() == 0
        for gradient in torch.autograd.grad(out, inputs.leaves(bias=False)):
            assert gradient.abs().max() == 0


def test_an_evaluation_leaves_the_averages_as_they_are() -> None:
    loss = new_loss(0.5)
    inputs = Inputs.draw(5)
    samples = torch.tensor([3, 1, 4, 0, 9])
    run(loss, inputs, samples, LocalPool())
    before = loss.state_dict()["normalizers._extra_state"]["log_averages"].clone()
    with torch.no_grad():
        other = Inputs.draw(5, seed=1)
        first = run(loss, other, samples, LocalPool()).loss
        assert run(loss, other, samples, LocalPool()).loss == first
    assert torch.equal(loss.state_dict()["normalizers._extra_state"]["log_averages"], before)
    run(loss, other, samples, LocalPool())
    after = loss.state_dict()["normalizers._extra_state"]["log_averages"]
    is_finite = after.isfinite().all(1).nonzero()[:, 0].tolist()
    assert is_finite == sorted(samples.tolist())
    assert not torch.equal(after, before)


def test_a_loss_that_is_not_finite_changes_no_average() -> None:
    loss = new_loss(0.5)
    inputs = Inputs.draw(4)
    run(loss, inputs, torch.arange(4), LocalPool())
    before = loss.state_dict()["normalizers._extra_state"]["log_averages"].clone()
    broken = inputs.image.detach().clone()
    broken[2] = torch.nan
    scale = inputs.logit_scale
    ids = torch.arange(4)[:, None]
    out = loss(broken, inputs.text, logit_scale=scale, pool=LocalPool(), ids=ids)
    assert out.loss.isnan()
    assert torch.equal(loss.state_dict()["normalizers._extra_state"]["log_averages"], before)


def test_equal_rows_and_cosines_of_minus_one_stay_finite_in_float32() -> None:
    """exp(z_ij - z_ii) reaches e^200, which float32 does not hold."""
    loss = new_loss(0.5)
    row = F.normalize(torch.arange(1.0, 9.0), dim=0)
    scale = torch.tensor(math.log(100.0), requires_grad=True)
    for sign in (1, -1, 1):
        image = row.repeat(6, 1)
        text = row.repeat(6, 1)
        text[:3] *= sign
        image.requires_grad_()
        text.requires_grad_()
        ids = torch.arange(6)[:, None]
        out = loss(image, text, logit_scale=scale, pool=LocalPool(), ids=ids).loss
        assert out.isfinite()
        for gradient in torch.autograd.grad(out, [image, text, scale]):
            assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "other", [{"label_smoothing": 0.1}, {"false_negatives": "caption"}], ids=str
)
def test_what_does_not_go_with_averages_is_refused(other: dict[str, object]) -> None:
    config = build(infonce.Config, {"global_normalizer": {"gamma": 0.9}, **other}, where="x")
    with pytest.raises(UserError, match=r"loss\.global_normalizer averages the normalizers"):
        config.build()


def test_each_width_of_matryoshka_has_averages_of_its_own_which_are_saved() -> None:
    config = infonce.Config(global_normalizer=GlobalNormalizer(0.5))
    loss = matryoshka.Config(widths={8: 1.0, 4: 1.0}, loss=config).build()
    whole = new_loss(0.5)
    narrow = new_loss(0.5)
    samples = torch.arange(5)[:, None]
    for seed in range(2):
        inputs = Inputs.draw(5, seed=seed)
        options = {"logit_scale": inputs.logit_scale, "pool": LocalPool(), "ids": samples}
        out = loss(inputs.image, inputs.text, **options).loss
        cut = [F.normalize(rows[:, :4], dim=1) for rows in (inputs.image, inputs.text)]
        expected = whole(inputs.image, inputs.text, **options).loss + narrow(*cut, **options).loss
        torch.testing.assert_close(out, expected, **EXACT)
        # As after a resume
        state = loss.state_dict()
        assert len(state) == 2
        loss = matryoshka.Config(widths={8: 1.0, 4: 1.0}, loss=config).build()
        loss.load_state_dict(state)
