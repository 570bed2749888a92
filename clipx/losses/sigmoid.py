"""Pairwise sigmoid loss: the loss of SigLIP (arXiv:2303.15343, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipx.config import config
from clipx.losses._tiles import at_least_float32
from clipx.losses.false_negatives import ID_KINDS, FalseNegatives
from clipx.losses.primitives import pairwise_mean
from clipx.types import Loss, LossOutput, Negatives, Pool, UserError


@config
class Config:
    """Temperature and bias are the model's logit_scale and logit_bias."""

    false_negatives: FalseNegatives = "none"
    """Candidates that are left out, as they are no negatives: those with the row's caption, its
    image, or either."""

    def build(self) -> Sigmoid:
        return Sigmoid(ID_KINDS[self.false_negatives])


class Sigmoid(Loss):
    """Each image with each text of the global batch: do they belong together?"""

    needs_logit_bias = True

    def __init__(self, id_kinds: tuple[str, ...] = ()) -> None:
        self.id_kinds = id_kinds

    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        *,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        pool: Pool,
        ids: Tensor | None = None,
        negatives: Negatives | None = None,
    ) -> LossOutput:
        """The sum over all pairs, divided by the number of this rank's rows.

        image, text: (B, D) of unit norm; logit_scale: () log of the inverse temperature;
        logit_bias: (); ids: (B, K), a column for each of `id_kinds`. Raises UserError without a
        logit_bias.
        """
        if logit_bias is None:
            raise UserError(
                "the sigmoid loss needs a model with a logit_bias; put init_logit_bias: -10 and "
                "init_logit_scale: 2.3026 (ln 10) into the model's JSON (arXiv:2303.15343, 3.2)"
            )
        image = at_least_float32(image)
        text = at_least_float32(text)
        scale = at_least_float32(logit_scale).exp()
        bias = at_least_float32(logit_bias)
        positive = scale * (image * text).sum(-1) + bias
        # -log sigmoid(-z) = softplus(z) for negatives, -log sigmoid(z) = softplus(z) - z for the
        # positive: sum all pairs as negatives, then correct the positives.
        over_all = pairwise_mean(
            softplus,
            image,
            text,
            pool,
            scale=scale,
            bias=bias,
            ids=ids,
            negatives=negatives,
            derivative=torch.sigmoid_,
            row_sums=softplus_row_sums,
        )
        accuracy = over_all.own_is_nearest.float().mean()
        # Divided by the rows, not by the pairs, as in the paper's algorithm 1: divided by pairs,
        # positives would count less the larger the batch is.
        return LossOutput(over_all.mean - positive.mean(), {"image_to_text_accuracy": accuracy})


def softplus(logits: Tensor) -> Tensor:
    """log(1 + e^z). torch's own softplus returns z above a threshold of 20."""
    return -F.logsigmoid(-logits)


def softplus_row_sums(logits: Tensor) -> Tensor:
    """(r,) sums of log(1 + e^z) over (r, c) logits, which are overwritten.

    log(1 + e^z) = max(z, 0) + log(1 + e^-|z|). On CPUs a log takes ten times as long as an exp, so
    it is taken of products of 512 factors between 1 and 2: 0.7 ms instead of 5.7 for 1,024 x 1,024.
    """
    total = logits.clamp(min=0).sum(1).double()
    # float64: of 1 + 1e-5, float32 keeps three digits of the 1e-5.
    for part in logits.abs_().neg_().exp_().split(512, dim=1):
        total += part.double().add_(1).prod(1).log_()
    return total.to(logits.dtype)
