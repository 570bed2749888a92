"""InfoNCE with hard negatives weighted up (arXiv:2010.04592) and false ones estimated away
(arXiv:2007.00224)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from clipx.config import config
from clipx.losses._counts import num_candidates
from clipx.losses._tiles import at_least_float32
from clipx.losses.primitives import pairwise_logsumexp
from clipx.types import Loss, LossOutput, Negatives, Pool


@config
class Config:
    """The temperature is the model's logit_scale. With beta = tau_plus = 0 it is InfoNCE."""

    beta: float = Field(default=0.5, ge=0)
    """A negative of logit z counts exp(beta z) times as much, relative to the others."""
    tau_plus: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a negative belongs to the row after all, which is subtracted."""

    def build(self) -> HardNegative:
        return HardNegative(self.beta, self.tau_plus)


class HardNegative(Loss):
    """Each image against all captions of the global batch, each caption against all its images."""

    def __init__(self, beta: float, tau_plus: float) -> None:
        self.beta = beta
        self.tau_plus = tau_plus

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
        """The mean over this rank's rows, over both directions.

        image, text: (B, D) of unit norm; logit_scale: () log of the inverse temperature
        logit_bias, ids: without effect
        """
        image = at_least_float32(image)
        text = at_least_float32(text)
        scale = at_least_float32(logit_scale).exp()
        positive = scale * (image * text).sum(-1)
        count = num_candidates(image, pool) - 1
        if negatives is not None:
            count += len(negatives.rows)
        if count == 0:  # one row: as for InfoNCE, nothing to learn
            return LossOutput((0 * positive).mean())

        # The sum over negatives of w_j exp(z_j), where w_j = exp(beta z_j) / mean exp(beta z).
        options = {"own": "left out", "negatives": negatives}
        weighted = pairwise_logsumexp(image, text, pool, scale=(1 + self.beta) * scale, **options)
        weights = pairwise_logsumexp(image, text, pool, scale=self.beta * scale, **options)
        log_count = torch.log(torch.tensor(float(count), dtype=scale.dtype, device=scale.device))
        loss = -positive
        for numerator, denominator in (
            (weighted.rows, weights.rows),
            (weighted.columns, weights.columns),
        ):
            log_negatives = numerator - (denominator - log_count)
            if self.tau_plus:
                log_negatives = self._debiased(log_negatives, positive, log_count, scale)
            loss = loss + torch.logaddexp(positive, log_negatives) / 2
        return LossOutput(loss.mean())

    def _debiased(
        self, log_negatives: Tensor, positive: Tensor, log_count: Tensor, scale: Tensor
    ) -> Tensor:
        """(B,) log of (sum of negatives - tau_plus * count * exp(positive)) / (1 - tau_plus), but
        at least that of negatives at the cosine -1 (arXiv:2007.00224, equation 7)."""
        least = log_count - scale
        # exp(x) - exp(y) = exp(x) (1 - exp(y - x))
        share = torch.exp(
            torch.log(scale.new_tensor(self.tau_plus)) + log_count + positive - log_negatives
        )
        is_positive = share < 1
        rest = torch.where(is_positive, 1 - share, 1.0)
        estimate = log_negatives + rest.log() - torch.log(scale.new_tensor(1 - self.tau_plus))
        return torch.where(is_positive & (estimate > least), estimate, least)
