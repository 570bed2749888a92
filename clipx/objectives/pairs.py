"""The loss of matched rows, with rows of earlier steps: what objectives of pairs share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipx.models.dual_encoder import DualEncoder
from clipx.objectives.queue import RowQueue, past_pairs
from clipx.types import HardNegatives, Loss, LossOutput, Pool


def pair_loss(
    loss: Loss,
    encoder: DualEncoder,
    queue: RowQueue | None,
    rows: Tensor,
    columns: Tensor,
    *,
    pool: Pool,
    ids: Tensor | None,
    hard: HardNegatives | None = None,
    queued: tuple[Tensor, Tensor] | None = None,
) -> LossOutput:
    """The loss of pairs by the encoder's temperature. In training, the pairs join the queue.

    rows, columns: (B, D) of unit norm; ids: see `Loss`
    hard: mined negatives, of a loss that takes them; queued: rows and columns for the queue, if
        they are others
    """
    scale = encoder.logit_scale
    bias = encoder.logit_bias
    negatives = None
    if queue is not None:
        negatives = past_pairs(queue, ids, rows.device)
    further: dict[str, Any] = {} if hard is None else {"hard": hard}
    out = loss(
        rows,
        columns,
        logit_scale=scale,
        logit_bias=bias,
        pool=pool,
        ids=ids,
        negatives=negatives,
        **further,
    )
    # After the loss, or rows would be their own negatives. Only training adds to the queue.
    if queue is not None and torch.is_grad_enabled():
        image, text = queued or (rows, columns)
        queue.push(pool, image=image, text=text, ids=ids)
    # DDP waits for gradients of the temperature and the bias, which a loss may not use.
    unused = 0 * scale if bias is None else 0 * (scale + bias)
    return LossOutput(out.loss + unused, out.metrics)


def clamp_temperature(encoder: DualEncoder) -> dict[str, Tensor]:
    """After a step. `clamped` is 1 where that changed it."""
    before = encoder.logit_scale.detach().clone()
    encoder.clamp_logit_scale()
    after = encoder.logit_scale.detach()
    return {"scale": after.exp(), "clamped": (after != before).float()}
