"""Symmetric InfoNCE with a learnable temperature: the loss of CLIP (arXiv:2103.00020, figure 3;
arXiv:1807.03748)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from clipx.config import config
from clipx.losses._tiles import at_least_float32
from clipx.losses.false_negatives import ID_KINDS, FalseNegatives
from clipx.losses.global_normalizer import GlobalNormalizer, Normalizers
from clipx.losses.primitives import pairwise_logsumexp, pairwise_sum
from clipx.types import HardNegatives, Loss, LossOutput, Negatives, Pool, UserError


@config
class Config:
    """The temperature is the model's logit_scale."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all candidates that are not masked."""
    false_negatives: FalseNegatives = "none"
    """Candidates that are masked, as they are no negatives: those with the row's caption, its
    image, or either."""
    global_normalizer: GlobalNormalizer | None = None
    """Moving averages of each sample's normalizers, for small batches (FastCLIP)."""

    def build(self) -> InfoNCE:
        if self.global_normalizer is None:
            return InfoNCE(self.label_smoothing, ID_KINDS[self.false_negatives])
        if self.label_smoothing or self.false_negatives != "none":
            raise UserError(
                "loss.global_normalizer averages the normalizers of the plain loss, so it goes "
                f"neither with label_smoothing {self.label_smoothing:g} nor with false_negatives "
                f"{self.false_negatives}; set label_smoothing=0 and false_negatives=none, or "
                "global_normalizer=null"
            )
        return InfoNCE(id_kinds=("sample",), normalizers=self.global_normalizer.build())


class InfoNCE(nn.Module, Loss):
    """Each image against all captions of the global batch, each caption against all its images."""

    def __init__(
        self,
        label_smoothing: float = 0.0,
        id_kinds: tuple[str, ...] = (),
        normalizers: Normalizers | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.id_kinds = id_kinds
        # Smoothing spreads the target over both directions alike, and these are of one.
        self.takes_hard_negatives = label_smoothing == 0 and normalizers is None
        self.normalizers = normalizers
        # Past rows have other normalizers than those of the averages.
        self.takes_negatives = normalizers is None

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        *,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        pool: Pool,
        ids: Tensor | None = None,
        negatives: Negatives | None = None,
        hard: HardNegatives | None = None,
    ) -> LossOutput:
        """The mean over this rank's rows of -log softmax at the positive, over both directions.

        image, text: (B, D) of unit norm; logit_scale: () log of the inverse temperature
        logit_bias: of no effect on a softmax; ids: (B, K), a column for each of `id_kinds`
        hard: further candidates of each image, as in the MultipleNegativesRankingLoss of
            sentence-transformers: those of all ranks, also of other images
        """
        # Logits in float32, whatever the towers compute in: see `at_least_float32`.
        image = at_least_float32(image)
        text = at_least_float32(text)
        scale = at_least_float32(logit_scale).exp()
        if self.normalizers is not None:
            assert ids is not None and negatives is None, "validation refuses a queue"
            return self.normalizers.loss(image, text, scale, ids, pool)
        positive = scale * (image * text).sum(-1)
        # -log softmax at the positive is logsumexp over all candidates minus the positive's logit.
        lse = pairwise_logsumexp(image, text, pool, scale=scale, ids=ids, negatives=negatives)
        over_texts = lse.rows
        if hard is not None:
            further = pairwise_logsumexp(
                image,
                at_least_float32(hard.columns),
                pool,
                scale=scale,
                ids=hard.row_ids,
                column_ids=hard.column_ids,
                own="absent",
            )
            # A log-sum-exp over two sets is the logaddexp of theirs.
            over_texts = torch.logaddexp(over_texts, further.rows)
        target = positive
        if self.label_smoothing:
            # Cross-entropy is linear in the target: a part of it is the mean over all candidates.
            mean = _mean_logit(image, text, scale, pool, ids, negatives)
            target = (1 - self.label_smoothing) * positive + self.label_smoothing * mean
        # Half from images to texts and half back; both directions have the same target.
        loss = ((over_texts + lse.columns) / 2 - target).mean()
        return LossOutput(loss, {"image_to_text_accuracy": lse.own_is_nearest.float().mean()})


def _mean_logit(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    pool: Pool,
    ids: Tensor | None,
    negatives: Negatives | None,
) -> Tensor:
    """(B,) mean over both directions of a pair's logits that are not masked."""
    options = {"scale": scale, "ids": ids}
    # `negatives` adds those of both directions, so only one of the two sums takes them.
    of_image = pairwise_sum(torch.positive, image, text, pool, negatives=negatives, **options)
    of_text = pairwise_sum(torch.positive, text, image, pool, **options)
    with torch.no_grad():
        # Masks leave each row another number of candidates. A text has as many as its image,
        # because both have the same ids, so without negatives one direction is enough.
        count = pairwise_sum(torch.ones_like, image, text, pool, ids=ids).rows
        num_logits = 2 * count
        if negatives is not None:
            with_negatives = pairwise_sum(
                torch.ones_like, image, text, pool, ids=ids, negatives=negatives
            )
            num_logits = count + with_negatives.rows
    return (of_image.rows + of_text.rows) / num_logits
