"""Symmetric InfoNCE with a learnable temperature: the loss of CLIP (arXiv:2103.00020, figure 3;
arXiv:1807.03748)."""

from __future__ import annotations

import torch
from torch import Tensor

from clipx.config import config
from clipx.types import LossOutput, Pool


@config
class Config:
    """InfoNCE has no settings of its own; the temperature is the model's logit_scale."""

    def build(self) -> InfoNCE:
        return InfoNCE()


class InfoNCE:
    """Each image against all captions of the global batch, each caption against all its images.

    The mean is over this rank's rows and candidates carry gradient through the gather, so the
    average of the ranks' gradients is the gradient of the global mean, for the towers and for
    logit_scale alike.
    """

    id_kinds: tuple[str, ...] = ()

    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        *,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        pool: Pool,
        ids: Tensor | None = None,
    ) -> LossOutput:
        """image, text: (B, D) float32 of unit norm; logit_scale: () log of the inverse
        temperature."""
        device = image.device.type
        with torch.autocast(
            device, enabled=False
        ):  # bf16 steps by 0.5 between 64 and 128, where logits end up
            scale = logit_scale.exp()
            positive = scale * (image * text).sum(-1)
            to_text = scale * image @ pool.gather(text).T  # (B, N)
            to_image = scale * text @ pool.gather(image).T
            loss = (to_text.logsumexp(-1) + to_image.logsumexp(-1)).mean() / 2 - positive.mean()
        target = pool.offset(len(image)) + torch.arange(len(image), device=image.device)
        accuracy = (to_text.detach().argmax(-1) == target).float().mean()
        return LossOutput(loss, {"image_to_text_accuracy": accuracy})
