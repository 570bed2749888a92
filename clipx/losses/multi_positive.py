"""InfoNCE with several positives of a row: SupCon (arXiv:2004.11362) and UniCL
(arXiv:2204.03610)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from clipx.config import config
from clipx.losses._counts import num_equal
from clipx.losses._tiles import at_least_float32
from clipx.losses.false_negatives import Concept
from clipx.losses.primitives import pairwise_logsumexp, pairwise_sum
from clipx.types import Loss, LossOutput, Negatives, Pool


@config
class Config:
    """The temperature is the model's logit_scale."""

    concept: Concept = "caption"
    """Rows of the same caption, the same image or the same label (SupCon's classes) are positives
    of each other."""
    image_image: float = Field(default=0.0, ge=0)
    """Weight of the term between images of one concept, beside that of images and texts."""

    def build(self) -> MultiPositive:
        return MultiPositive(self.concept, self.image_image)


class MultiPositive(Loss):
    """All rows of a row's concept, on any rank, are its positives."""

    def __init__(self, concept: str, image_image: float) -> None:
        self.id_kinds = (concept,)
        self.image_image = image_image

    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        *,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        pool: Pool,
        ids: Tensor | None = None,
        negatives: Negatives | None = None,
    ) -> LossOutput:
        """The mean over this rank's rows of -log softmax, averaged over the positives of a row
        (UniCL, equations 2 and 3), and over both directions.

        image, text: (B, D) of unit norm; logit_scale: () log of the inverse temperature
        logit_bias: without effect; ids: (B, 1) of concepts
        negatives: further candidates, except those of a row's own concept
        """
        assert ids is not None, "an objective computes the ids that a loss names in id_kinds"
        image = at_least_float32(image)
        text = at_least_float32(text)
        scale = at_least_float32(logit_scale).exp()
        num_positives = num_equal(ids, pool)
        lse = pairwise_logsumexp(image, text, pool, scale=scale)
        over_texts = lse.rows
        over_images = lse.columns
        if negatives is not None:
            options = {"scale": scale, "ids": ids, "column_ids": negatives.ids, "own": "absent"}
            past_texts = pairwise_logsumexp(image, negatives.columns, None, **options).rows
            past_images = pairwise_logsumexp(text, negatives.rows, None, **options).rows
            over_texts = torch.logaddexp(over_texts, past_texts)
            over_images = torch.logaddexp(over_images, past_images)
        # The mean over positives p of (lse - logit_p) is lse minus the mean of their logits.
        of_image = sum_of_positives(image, text, pool, scale, ids) / num_positives
        of_text = sum_of_positives(text, image, pool, scale, ids) / num_positives
        loss = ((over_texts - of_image + over_images - of_text) / 2).mean()
        if self.image_image:
            loss = loss + self.image_image * within(image, pool, scale, ids, num_positives)
        accuracy = lse.own_is_nearest.float().mean()
        return LossOutput(loss, {"image_to_text_accuracy": accuracy})


def within(rows: Tensor, pool: Pool, scale: Tensor, ids: Tensor, num_positives: Tensor) -> Tensor:
    """() the loss between rows of one kind, without the row itself (SupCon's L_out). A row without
    another of its concept adds 0.

    num_positives: (B,) rows of the concept, with the row itself
    """
    lse = pairwise_logsumexp(rows, rows, pool, scale=scale, own="left out").rows
    of_others = sum_of_positives(rows, rows, pool, scale, ids, own_counts=False)
    num_others = num_positives - 1
    has_others = num_others > 0
    # Without any other row, lse is -inf.
    mean = of_others / num_others.clamp(min=1)
    return torch.where(has_others, lse.masked_fill(~has_others, 0) - mean, 0.0).mean()


def sum_of_positives(
    rows: Tensor,
    columns: Tensor,
    pool: Pool,
    scale: Tensor,
    ids: Tensor,
    *,
    own_counts: bool = True,
) -> Tensor:
    """(B,) sum of the logits of each row with the columns of its concept."""
    return pairwise_sum(
        torch.positive,
        rows,
        columns,
        pool,
        scale=scale,
        ids=ids,
        match="equal",
        own="counts" if own_counts else "left out",
        derivative=torch.ones_like,
    ).rows
