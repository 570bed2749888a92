"""The pairwise loss of Hadsell, Chopra and LeCun (CVPR 2006, "Dimensionality reduction by learning
an invariant mapping"): pairs that belong together are drawn together, others pushed apart until
they are a margin away."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from clipx.config import config
from clipx.losses._counts import num_candidates, num_equal, num_equal_among
from clipx.losses._tiles import at_least_float32
from clipx.losses.false_negatives import Concept
from clipx.losses.primitives import pairwise_sum
from clipx.types import Loss, LossOutput, Negatives, Pool, RankError


@config
class Config:
    """Uses no temperature."""

    margin: float = Field(default=1.0, gt=0, le=2)
    """Distance beyond which a negative pair adds nothing; unit vectors are at most 2 apart."""
    pairs: Literal["labeled", "all"] = "labeled"
    """labeled: each image with its own text, a positive pair if its label is 1 and a negative one
    if it is 0. all: each image with the texts of all ranks."""
    concept: Concept = "caption"
    """With pairs=all, pairs of the same caption, image or label are positive too."""

    def build(self) -> Margin:
        return Margin(self)


class Margin(Loss):
    """y D^2 + (1 - y) max(0, m - D)^2 with the Euclidean distance D of unit vectors, without the
    paper's factor 1/2, and with y = 1 for the positive pairs."""

    def __init__(self, settings: Config) -> None:
        self.settings = settings
        is_labeled = settings.pairs == "labeled"
        self.id_kinds = ("label",) if is_labeled else (settings.concept,)
        self.takes_negatives = not is_labeled

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
        """labeled: the mean over this rank's pairs. all: the mean over the positive pairs of all
        ranks plus that over the negative pairs.

        image, text: (B, D) of unit norm; logit_scale, logit_bias: without effect
        ids: (B, 1) of labels or concepts. Raises RankError for a label other than 0 and 1.
        negatives: further ones of all pairs, except those of a row's own concept
        """
        assert ids is not None, "an objective computes the ids that a loss names in id_kinds"
        image = at_least_float32(image)
        text = at_least_float32(text)
        if self.settings.pairs == "labeled":
            return LossOutput(self._labeled(image, text, ids[:, 0]))
        return LossOutput(self._of_all(image, text, pool, ids, negatives))

    def _labeled(self, image: Tensor, text: Tensor, labels: Tensor) -> Tensor:
        """() mean over this rank's pairs."""
        is_unknown = (labels != 0) & (labels != 1)
        if is_unknown.any():
            value = labels[is_unknown][0].item()
            raise RankError(
                f"the label of a pair is {value}, and the margin loss knows 0 (negative) and 1 "
                "(positive); correct the labels, or set loss.pairs=all and loss.concept=label if "
                "they are classes"
            )
        squared = (image - text).square().sum(-1)
        # The distance has no gradient at 0, where that of a square root is infinite.
        is_zero = squared == 0
        distance = squared.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)
        negative = torch.relu(self.settings.margin - distance).square()
        return torch.where(labels == 1, squared, negative).mean()

    def _of_all(
        self, image: Tensor, text: Tensor, pool: Pool, ids: Tensor, past: Negatives | None
    ) -> Tensor:
        """() mean over positive pairs plus mean over negative pairs. A pair of image i and text j
        is the same in both directions, so one direction has all pairs."""
        of_positives = pairwise_sum(
            squared_distance,
            image,
            text,
            pool,
            ids=ids,
            match="equal",
            derivative=lambda cosine: torch.full_like(cosine, -2),
        ).rows
        of_negatives = pairwise_sum(
            self._repulsion,
            image,
            text,
            pool,
            ids=ids,
            own="left out",
            negatives=past,
            derivative=self._repulsion_slope,
        ).rows
        num_positives = num_equal(ids, pool)
        num_negatives = num_candidates(image, pool) - num_positives
        if past is not None:
            num_past = torch.full_like(num_positives, len(past.rows))
            if past.ids is not None:
                num_past = num_past - num_equal_among(ids, past.ids)
            num_negatives = num_negatives + 2 * num_past  # past texts, and past images
        counts = pool.gather(torch.stack([num_positives, num_negatives], 1))
        num_ranks = len(counts) // len(image)
        of_all = counts.sum(0).clamp(min=1)
        # Divided by the mean count of a rank, so that the mean over ranks is that of all pairs.
        return num_ranks * (of_positives.sum() / of_all[0] + of_negatives.sum() / of_all[1])

    def _repulsion(self, cosine: Tensor) -> Tensor:
        """max(0, m - D)^2"""
        distance = squared_distance(cosine).sqrt()
        return torch.relu(self.settings.margin - distance).square()

    def _repulsion_slope(self, cosine: Tensor) -> Tensor:
        """Its derivative: dD / dcosine = -1 / D."""
        squared = squared_distance(cosine)
        distance = squared.sqrt()
        slope = 2 * torch.relu(self.settings.margin - distance) / distance
        # Rows that are equal up to rounding have no direction in which to part, see `_labeled`.
        is_zero = squared < 16 * torch.finfo(squared.dtype).eps
        return slope.masked_fill(is_zero, 0)


def squared_distance(cosine: Tensor) -> Tensor:
    """Of unit vectors, |a - b|^2 = 2 (1 - a @ b)."""
    return (2 - 2 * cosine).clamp(min=0)
