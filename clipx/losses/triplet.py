"""Triplet loss: a row is nearer to its own column than to others, by a margin (FaceNet,
arXiv:1503.03832; VSE++, arXiv:1707.05612)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from clipx.config import config
from clipx.losses._tiles import at_least_float32
from clipx.losses.false_negatives import ID_KINDS, FalseNegatives
from clipx.losses.primitives import nearest_candidates, pairwise_sum
from clipx.types import Loss, LossOutput, Negatives, Pool

Mining = Literal["hardest", "semi_hard", "all"]


@config
class Config:
    """Uses no temperature."""

    margin: float = Field(default=0.2, gt=0)
    """In units of `distance`."""
    mining: Mining = "hardest"
    """Negatives of a row: the nearest one (VSE++); all that are farther than the positive, by less
    than the margin (FaceNet's semi-hard ones); or all."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """1 - cosine, or the squared Euclidean distance, as in FaceNet."""
    scope: Literal["global", "batch"] = "global"
    """Negatives of the batches of all ranks, or of the row's own rank."""
    false_negatives: FalseNegatives = "none"
    """Candidates that are left out, as they are no negatives: those with the row's caption, its
    image, or either."""

    def build(self) -> Triplet:
        return Triplet(self)


class Triplet(Loss):
    """Images with their texts as positives, and texts with their images."""

    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.id_kinds = ID_KINDS[settings.false_negatives]

    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        *,
        logit_scale: Tensor | None = None,
        logit_bias: Tensor | None = None,
        pool: Pool,
        ids: Tensor | None = None,
        negatives: Negatives | None = None,
    ) -> LossOutput:
        """The mean over both directions. Of `hardest`, a direction is the mean over rows; of the
        others, the mean over the triplets of all ranks that violate the margin.

        image, text: (B, D) of unit norm; logit_scale, logit_bias: without effect
        ids: (B, K), a column for each of `id_kinds`
        """
        image = at_least_float32(image)
        text = at_least_float32(text)
        unit = 1.0
        if self.settings.distance == "euclidean":
            unit = 2.0  # of unit vectors, |a - b|^2 = 2 (1 - a @ b)
        margin = self.settings.margin / unit
        # Texts have past images as further candidates, where images have past texts.
        swapped = None
        if negatives is not None:
            swapped = Negatives(negatives.columns, negatives.rows, negatives.ids)
        of_image = self._direction(image, text, margin, pool, ids, negatives)
        of_text = self._direction(text, image, margin, pool, ids, swapped)
        return LossOutput(unit * (of_image + of_text) / 2)

    def _direction(
        self,
        rows: Tensor,
        columns: Tensor,
        margin: float,
        pool: Pool,
        ids: Tensor | None,
        past: Negatives | None,
    ) -> Tensor:
        """() mean of max(0, margin + similarity to the negative - similarity to the positive)."""
        scope = pool if self.settings.scope == "global" else None
        positive = (rows * columns).sum(-1)
        if self.settings.mining == "hardest":
            nearest = nearest_candidates(rows, columns, scope, 1, ids=ids, negatives=past)[:, 0]
            return torch.relu(margin + nearest - positive).mean()

        # A further coordinate adds a row's own number to each of its similarities, so that a logit
        # is what violates the margin.
        violations = torch.cat([rows, (margin - positive)[:, None]], 1)
        candidates = torch.cat([columns, columns.new_ones(len(columns), 1)], 1)
        is_semi_hard = self.settings.mining == "semi_hard"

        def cost(violation: Tensor) -> Tensor:
            if is_semi_hard:  # others are nearer than the positive
                violation = violation * (violation < margin)
            return torch.relu(violation)

        def counts(violation: Tensor) -> Tensor:
            return (cost(violation) > 0).to(violation.dtype)

        options = {"ids": ids, "own": "left out"}
        total = pairwise_sum(cost, violations, candidates, scope, **options).rows
        with torch.no_grad():
            count = pairwise_sum(counts, violations, candidates, scope, **options).rows
        if past is not None:
            further = torch.cat([past.columns, past.columns.new_ones(len(past.columns), 1)], 1)
            options = {"ids": ids, "column_ids": past.ids, "own": "absent"}
            total = total + pairwise_sum(cost, violations, further, None, **options).rows
            with torch.no_grad():
                count = count + pairwise_sum(counts, violations, further, None, **options).rows
        of_all = pool.gather(count)
        num_ranks = len(of_all) // len(count)
        # Divided by the mean count of a rank, so that the mean over ranks is that of all triplets.
        return total.sum() * num_ranks / of_all.sum().clamp(min=1)
