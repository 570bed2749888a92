"""Normalizers of InfoNCE that are moving averages over steps, so that small batches contrast a
sample with what it has met before: SogCLR (arXiv:2202.12387), FastCLIP (arXiv:2407.01445).

With z_ij the logit of image i and text j, a step's estimate for image i over its batch B is

    n_i = 1 / (|B| - 1) sum_{j != i} exp(z_ij - z_ii)

and u_i, kept by the sample's number in the corpus, follows it: u_i <- (1 - gamma) u_i + gamma n_i,
or n_i when the sample is first met. The loss is mean_i log(epsilon + u_i), whose gradient is
estimated by that of mean_i n_i / (epsilon + u_i) with u_i held constant; the same for texts, and
the mean of both. With gamma = 1 and epsilon = 1 / (|B| - 1) it is InfoNCE, which adds the positive.

The temperature has the gradient of the same expression, or with `rho` that of FastCLIP-v3: there
the loss is t (mean_i log(epsilon + u_i) + rho) with the temperature t, so that its derivative for t
is mean_i log(epsilon + u_i) + rho plus t times the derivative of n_i / (epsilon + u_i).
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from clipx.config import config
from clipx.losses._counts import num_candidates
from clipx.losses.primitives import pairwise_logsumexp
from clipx.types import LossOutput, Pool


@config
class GlobalNormalizer:
    """Moving averages of each sample's normalizers."""

    gamma: float = Field(default=0.9, gt=0, le=1)
    """Weight of a step's estimate in a sample's moving average; 1: no average."""
    epsilon: float | None = Field(default=1e-14, gt=0)
    """Summand of the averages, as in FastCLIP. null: 1 / (candidates - 1), which is the positive's
    share in InfoNCE."""
    rho: float | None = Field(default=None, ge=0)
    """FastCLIP-v3's loss for the temperature, which grows where the mean log normalizer is below
    -rho; FastCLIP uses 6.5 to 8.5. null: the temperature's gradient is as for InfoNCE."""

    def build(self) -> Normalizers:
        return Normalizers(self.gamma, self.epsilon, self.rho)


class Normalizers(nn.Module):
    """The averages of all samples, equal on all ranks, 8 bytes a sample."""

    def __init__(self, gamma: float, epsilon: float | None, rho: float | None) -> None:
        super().__init__()
        self.gamma = gamma
        self.epsilon = epsilon
        self.rho = rho
        # (samples, 2) float32: log u of image and text by the sample's number, -inf before the
        # first visit. Logarithms, because exp(z_ij - z_ii) reaches e^200.
        self._log_averages = torch.empty(0, 2)

    def loss(
        self, image: Tensor, text: Tensor, scale: Tensor, samples: Tensor, pool: Pool
    ) -> LossOutput:
        """The mean over this rank's rows of log(epsilon + u) plus log(|B| - 1), which compares with
        InfoNCE; or with `rho` the loss of FastCLIP-v3. With gradients enabled, the averages are
        updated.

        image, text: (B, D) of unit norm; scale: (); samples: (B, 1) numbers in the corpus
        """
        positive = scale * (image * text).sum(-1)
        num_others = num_candidates(image, pool) - 1
        if num_others == 0:  # one row: as for InfoNCE, nothing to learn
            return LossOutput((0 * positive).mean())

        others = pairwise_logsumexp(image, text, pool, scale=scale, own="left out")
        accuracy = (positive > others.largest_other).float().mean()
        log_count = math.log(num_others)
        estimates = torch.stack([others.rows, others.columns], 1) - positive[:, None] - log_count
        averages = self._update(samples[:, 0], estimates.detach(), pool)
        epsilon = 1 / num_others if self.epsilon is None else self.epsilon
        normalizers = torch.logaddexp(averages, averages.new_tensor(math.log(epsilon)))
        # The value is log(epsilon + u). The gradient is n / (epsilon + u) times that of log n,
        # which is that of n / (epsilon + u).
        weighted = (estimates.detach() - normalizers).exp() * estimates
        mean = (normalizers + weighted - weighted.detach()).mean()
        loss = mean + log_count if self.rho is None else (mean + self.rho) / scale
        return LossOutput(loss, {"image_to_text_accuracy": accuracy})

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"log_averages": self._log_averages}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self._log_averages = state["log_averages"].clone()  # updated in place

    def _update(self, samples: Tensor, estimates: Tensor, pool: Pool) -> Tensor:
        """(B, 2) log averages with the new (B, 2) log estimates."""
        size = len(self._log_averages)
        known = self._log_averages.to(samples.device)
        past = torch.full_like(estimates, -torch.inf)
        if size:
            rows = known[samples.clamp(max=size - 1)].to(past.dtype)
            past = torch.where((samples < size)[:, None], rows, past)
        if self.gamma == 1:
            averages = estimates
        else:
            kept = past + math.log(1 - self.gamma)
            averages = torch.logaddexp(kept, estimates + math.log(self.gamma))
            averages = torch.where(past == -torch.inf, estimates, averages)
        if torch.is_grad_enabled():
            self._store(pool.gather(samples), pool.gather(averages), known)
        return averages

    def _store(self, samples: Tensor, averages: Tensor, known: Tensor) -> None:
        """Keep the averages of the global batch, in the order of its positions."""
        if not averages.isfinite().all():  # the step is skipped, and what it computed is wrong
            return
        size = int(samples.max()) + 1
        if size > len(known):
            # An eighth more, so that a corpus that is read in order is not copied in each step.
            more = known.new_full((size + size // 8 - len(known), 2), -torch.inf)
            known = torch.cat([known, more])
        # A sample may be twice in a batch; its last position counts, on any number of ranks.
        distinct, group = samples.unique(return_inverse=True)
        place = torch.arange(len(samples), device=samples.device)
        last = torch.zeros_like(distinct).scatter_reduce(0, group, place, "amax")
        known[distinct] = averages[last].to(known.dtype)
        self._log_averages = known
