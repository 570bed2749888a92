"""Losses of the papers as a user would write them, over the primitives."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from clipx.losses.primitives import nearest_candidates, pairwise_logsumexp, pairwise_sum
from clipx.types import LossOutput, Pool


def infonce(
    image: Tensor, text: Tensor, *, logit_scale: Tensor, pool: Pool, ids: Tensor | None, **_: Any
) -> LossOutput:
    """Figure 3 of arXiv:2103.00020."""
    scale = logit_scale.exp()
    positive = scale * (image * text).sum(-1)
    over_texts, over_images = pairwise_logsumexp(image, text, pool, scale=scale, ids=ids)
    return LossOutput((over_texts + over_images - 2 * positive).mean() / 2)


class PlainInfoNCE:
    """`infonce` as a component."""

    id_kinds = ()

    def __call__(self, image: Tensor, text: Tensor, **inputs: Any) -> LossOutput:
        return infonce(image, text, **inputs)


def sigmoid(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor,
    logit_bias: Tensor,
    pool: Pool,
    ids: Tensor | None,
) -> LossOutput:
    """Algorithm 1 of arXiv:2303.15343. -log sigmoid(z) of a positive is -log sigmoid(-z) - z, so
    all pairs are summed as negatives and the positives are corrected."""
    scale = logit_scale.exp()
    positive = scale * (image * text).sum(-1) + logit_bias
    everything = pairwise_sum(
        lambda z: -F.logsigmoid(-z), image, text, pool, scale=scale, bias=logit_bias, ids=ids
    )
    return LossOutput((everything - positive).mean())


def triplet(
    image: Tensor, text: Tensor, *, logit_scale: Tensor, pool: Pool, ids: Tensor | None, **_: Any
) -> LossOutput:
    """Hardest negatives of the global batch, of VSE++ (arXiv:1707.05612)."""
    positive = (image * text).sum(-1)
    hardest = nearest_candidates(image, text, pool, 1, ids=ids)[:, 0]
    loss = F.relu(0.2 - positive + hardest).mean()
    return LossOutput(loss + 0 * logit_scale)  # DDP waits for the gradient of every parameter
