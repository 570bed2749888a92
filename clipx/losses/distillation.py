"""What a student learns from a teacher's embeddings: CLIP-KD (arXiv:2307.12732), MobileCLIP
(arXiv:2311.17049). Used by objectives with a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from clipx.losses._tiles import at_least_float32
from clipx.losses.primitives import pairwise_expectation, pairwise_logsumexp
from clipx.types import Pool


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """() mean over rows of the squared distance (CLIP-KD's feature distillation).

    student, teacher: (B, D) of unit norm
    """
    difference = at_least_float32(student) - at_least_float32(teacher.detach())
    return difference.square().sum(-1).mean()


def similarity_kl(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Tensor | float,
    pool: Pool,
) -> Tensor:
    """() mean over this rank's rows and both directions of KL(teacher || student) between the
    softmax over all candidates of the pool (CLIP-KD's contrastive relational distillation;
    MobileCLIP's distillation loss).

    image, text: (B, D) of unit norm; teacher_image, teacher_text: (B, T) of unit norm, without
    gradient; scale, teacher_scale: () inverse temperatures, which multiply cosines
    """
    image = at_least_float32(image)
    text = at_least_float32(text)
    student = pairwise_logsumexp(image, text, pool, scale=scale)
    with torch.no_grad():
        teacher = pairwise_logsumexp(teacher_image, teacher_text, pool, scale=teacher_scale)
    excess_of_image, excess_of_text = pairwise_expectation(
        image,
        text,
        teacher_image,
        teacher_text,
        teacher,
        pool,
        scale=scale,
        teacher_scale=teacher_scale,
    )
    # KL = E[log p - log q] under p, where log p = t - T and log q = z - Z: the logits t and z of
    # teacher and student minus their log-sum-exps.
    of_image = student.rows - teacher.rows - excess_of_image
    of_text = student.columns - teacher.columns - excess_of_text
    return ((of_image + of_text) / 2).mean()


def interactive(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    scale: Tensor | float,
    pool: Pool,
) -> Tensor:
    """() InfoNCE of the student's images against the teacher's texts, and of the student's texts
    against the teacher's images, the mean of both over this rank's rows (CLIP-KD's
    interactive contrastive learning).

    image, text, teacher_image, teacher_text: (B, D) of unit norm; no gradient reaches the teacher
    scale: () inverse temperature, which multiplies cosines
    """
    total = image.new_zeros((), dtype=at_least_float32(image).dtype)
    for student, teacher in ((image, teacher_text), (text, teacher_image)):
        rows = at_least_float32(student)
        columns = at_least_float32(teacher.detach())
        positive = scale * (rows * columns).sum(-1)
        lse = pairwise_logsumexp(rows, columns, pool, scale=scale)
        total = total + (lse.rows - positive).mean() / 2
    return total
