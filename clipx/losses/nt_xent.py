"""NT-Xent: the loss of SimCLR (arXiv:2002.05709, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from clipx.config import config
from clipx.losses._tiles import at_least_float32
from clipx.losses.primitives import pairwise_logsumexp
from clipx.types import Loss, LossOutput, Negatives, Pool


@config
class Config:
    """The temperature is the model's logit_scale."""

    def build(self) -> NTXent:
        return NTXent()


class NTXent(Loss):
    """Each of the 2N rows against the 2N - 1 others of the global batch, of both kinds."""

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
        """The mean over this rank's 2B rows of -log softmax at the other row of the pair.

        image, text: (B, D) of unit norm, for example two views of each picture
        logit_scale: () log of the inverse temperature; logit_bias, ids: without effect
        """
        first = at_least_float32(image)
        second = at_least_float32(text)
        scale = at_least_float32(logit_scale).exp()
        positive = scale * (first * second).sum(-1)
        # The (2N, 2N) matrix has a block of pairs between the kinds, used in both directions, and
        # one block within each kind, without the row itself.
        between = pairwise_logsumexp(first, second, pool, scale=scale, negatives=negatives)
        loss = -positive
        for rows, over_others in ((first, between.rows), (second, between.columns)):
            within = pairwise_logsumexp(rows, rows, pool, scale=scale, own="left out").rows
            loss = loss + torch.logaddexp(over_others, within) / 2
        accuracy = between.own_is_nearest.float().mean()
        return LossOutput(loss.mean(), {"image_to_text_accuracy": accuracy})
