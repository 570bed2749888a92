"""One optimizer step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clipx.data import transforms
from clipx.distributed.runtime import unwrap
from clipx.engine.precision import autocast
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder
from clipx.types import Batch, Pool


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: InfoNCE,
    pool: Pool,
    batch: Batch,
    *,
    device: torch.device,
    dtype: torch.dtype,
    clip_grad_norm: float | None,
    normalize: Callable[[Tensor], Tensor] = transforms.normalize,
) -> dict[str, Tensor]:
    """Forward, backward, clip, update. Returns detached scalars by log name: loss, its metrics,
    scale, grad_norm.

    normalize: the batch's images on the device -> the model's first input
    """
    image = normalize(batch.image.to(device, non_blocking=True))
    text = batch.text.to(device, non_blocking=True)
    with autocast(device, dtype):
        image_features, text_features, logit_scale, logit_bias = model(image, text)
    out = loss(
        image_features, text_features, logit_scale=logit_scale, logit_bias=logit_bias, pool=pool
    )
    out.loss.backward()
    limit = torch.inf if clip_grad_norm is None else clip_grad_norm
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    encoder = unwrap(model)
    assert isinstance(encoder, DualEncoder)
    encoder.clamp_logit_scale()
    return {
        "loss": out.loss.detach(),
        **out.metrics,
        "scale": encoder.logit_scale.detach().exp(),
        "grad_norm": grad_norm.detach(),
    }
