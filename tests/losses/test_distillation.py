"""Losses of a student beside its teacher, against their definitions over whole float64 matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from blocks import BlockPool
from cases import EXACT, small_tiles
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses.distillation import feature_mse, interactive, similarity_kl
from clipx.types import Pool

POOLS = st.one_of(st.just(LocalPool()), st.builds(BlockPool, st.integers(1, 5), st.integers(0, 9)))


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch.setattr, rows=3, size_bytes=8 * 3 * 4, kept=1)


@dataclass(frozen=True)
class Pair:
    """image, text: the student's (B, 8) unit rows; the teacher's are (B, width)"""

    image: Tensor
    text: Tensor
    scale: Tensor
    teacher_image: Tensor
    teacher_text: Tensor
    teacher_scale: Tensor

    @classmethod
    def draw(cls, size: int, *, width: int = 5, scale: float = 10.0, seed: int = 0) -> Pair:
        generator = torch.Generator().manual_seed(seed)

        def rows(columns: int) -> Tensor:
            drawn = torch.randn(size, columns, generator=generator, dtype=torch.float64)
            return F.normalize(drawn, dim=-1).requires_grad_()

        return cls(
            rows(8),
            rows(8),
            torch.tensor(scale, dtype=torch.float64, requires_grad=True),
            rows(width),
            rows(width),
            torch.tensor(30.0, dtype=torch.float64, requires_grad=True),
        )

    def kl(self, pool: Pool) -> Tensor:
        return similarity_kl(
            self.image,
            self.text,
            self.scale,
            self.teacher_image,
            self.teacher_text,
            self.teacher_scale,
            pool,
        )

    @property
    def student(self) -> list[Tensor]:
        return [self.image, self.text, self.scale]

    @property
    def teacher(self) -> list[Tensor]:
        return [self.teacher_image, self.teacher_text, self.teacher_scale]


def pairs() -> st.SearchStrategy[Pair]:
    return st.builds(
        Pair.draw,
        st.integers(1, 12),
        width=st.integers(1, 12),
        scale=st.sampled_from([1.0, 1 / 0.07, 100.0]),
        seed=st.integers(0, 1000),
    )


def assert_same(actual: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(actual.detach(), expected.detach(), **EXACT)
    gradients = torch.autograd.grad(actual, leaves)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(gradient, reference, **EXACT)


@settings(deadline=None, max_examples=100)
@given(pair=pairs(), pool=POOLS)
def test_similarity_kl(pair: Pair, pool: Pool) -> None:
    logits = pair.scale * pair.image @ pair.text.T
    of_teacher = (pair.teacher_scale * pair.teacher_image @ pair.teacher_text.T).detach()
    expected = torch.zeros_like(pair.scale)
    for dim in (1, 0):
        log_student = logits.log_softmax(dim)
        log_teacher = of_teacher.log_softmax(dim)
        divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim)
        expected = expected + divergence.mean() / 2
    actual = pair.kl(pool)
    assert_same(actual, expected, pair.student)
    of_teacher = torch.autograd.grad(pair.kl(pool), pair.teacher, allow_unused=True)
    assert of_teacher == (None, None, None)


@settings(deadline=None, max_examples=60)
@given(pair=pairs(), pool=POOLS)
def test_interactive(pair: Pair, pool: Pool) -> None:
    teacher_image = F.normalize(pair.teacher_text.detach().sum(1)[:, None] + pair.text.detach())
    teacher_text = teacher_image.flip(1).contiguous()
    target = torch.arange(len(pair.image))
    expected = torch.zeros_like(pair.scale)
    for rows, columns in ((pair.image, teacher_text), (pair.text, teacher_image)):
        expected = expected + F.cross_entropy(pair.scale * rows @ columns.T, target) / 2
    actual = interactive(pair.image, pair.text, teacher_image, teacher_text, pair.scale, pool)
    assert_same(actual, expected, pair.student)


def test_feature_mse_is_the_mean_squared_distance() -> None:
    pair = Pair.draw(6, width=8)
    out = feature_mse(pair.image, pair.teacher_image)
    # of unit vectors, |a - b|^2 = 2 - 2 a @ b
    expected = 2 - 2 * (pair.image * pair.teacher_image.detach()).sum(1).mean()
    torch.testing.assert_close(out, expected, **EXACT)
    (gradient,) = torch.autograd.grad(out, [pair.image])
    torch.testing.assert_close(gradient, 2 * (pair.image - pair.teacher_image) / 6, **EXACT)
    of_teacher = feature_mse(pair.image, pair.teacher_image)
    assert torch.autograd.grad(of_teacher, [pair.teacher_image], allow_unused=True) == (None,)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn() -> None:
    pair = Pair.draw(9, scale=100.0)
    image, text = (rows.detach().float() for rows in (pair.image, pair.text))
    rows = [image.clone().requires_grad_(), text.clone().requires_grad_()]
    scale = torch.tensor(100.0, requires_grad=True)
    out = similarity_kl(rows[0], rows[1], scale, image, text, 100.0, LocalPool())
    assert abs(out.item()) < 1e-5
    for gradient in torch.autograd.grad(out, [*rows, scale]):
        assert gradient.abs().max() < 1e-4


def test_one_row_and_equal_rows_have_finite_losses_in_float32() -> None:
    for size in (1, 6):
        row = F.normalize(torch.arange(1.0, 9.0), dim=0)
        image = row.repeat(size, 1).requires_grad_()
        text = row.repeat(size, 1).requires_grad_()
        teacher = F.normalize(torch.arange(float(3 * size)).view(size, 3) + 1)
        out = similarity_kl(image, text, 100.0, teacher, teacher, 100.0, LocalPool())
        out = out + interactive(image, text, image.detach(), text.detach(), 100.0, LocalPool())
        assert out.isfinite()
        if size == 1:
            assert math.isclose(out.item(), 0, abs_tol=1e-5)
        for gradient in torch.autograd.grad(out, [image, text]):
            assert gradient.isfinite().all()
