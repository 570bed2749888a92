"""Views of an image as positives of each other: the augmentation and the loss of SimCLR
(arXiv:2002.05709), which `two_view` and `slip` share."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.data.config import Hue, Probability, Share, Strength
from clipx.losses.nt_xent import NTXent
from clipx.models.dual_encoder import MAX_LOGIT_SCALE
from clipx.types import LossOutput, Pool


@config
class ViewsConfig:
    """Two views of an image. Defaults are those of SimCLR's crops with the colors of MoCo v2
    (arXiv:2003.04297), without blur: both papers have it with `blur_prob: 0.5`."""

    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    """Share of the image's area that a random crop keeps."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Width over height of a random crop."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    color_jitter: tuple[Strength, Strength, Strength, Hue] = (0.4, 0.4, 0.4, 0.1)
    """Strength of changes of brightness, contrast, saturation and hue."""
    color_jitter_prob: Probability = 0.8
    """Probability that colors change."""
    gray_scale_prob: Probability = 0.2
    """Probability that a view becomes gray."""
    blur_prob: Probability = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Standard deviation of the blur, as data.blur_sigma."""
    hidden: PositiveInt = 2048
    """Width inside of the projection head."""
    width: PositiveInt = 128
    """Of the head's output, which the loss compares."""
    temperature: Annotated[float, Field(gt=0.01, le=1)] = 0.1
    """By which cosines of views are divided, at first or always."""
    learn_temperature: bool = False
    """Train the temperature."""

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation.of(self)


class ViewContrast(nn.Module):
    """A projection head over embeddings of views, and their loss. The head is not used afterwards:
    embeddings before it serve other tasks better (arXiv:2002.05709, section 4.2).

    It has layer norm where the paper has batch norm: with batch norm a row depends on the others of
    its rank, which micro-batches would change.
    """

    def __init__(self, embed_dim: int, settings: ViewsConfig) -> None:
        super().__init__()
        self.head = projection(embed_dim, settings)
        self.log_scale = log_scale(settings)
        self._loss = NTXent()

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, embed_dim) -> (B, width) float32 of unit norm"""
        return F.normalize(self.head(embeddings).float(), dim=-1)

    def loss(self, first: Tensor, second: Tensor, pool: Pool) -> LossOutput:
        """first, second: (B, width), two views of each image"""
        out = self._loss(first, second, logit_scale=self.log_scale, pool=pool)
        accuracy = out.metrics["image_to_text_accuracy"]
        return LossOutput(out.loss, {"view_accuracy": accuracy})

    def after_step(self) -> dict[str, Tensor]:
        return {"view_scale": clamped_scale(self.log_scale)}


def log_scale(settings: ViewsConfig) -> nn.Parameter:
    """() log of the inverse temperature, which is trained if the settings say so."""
    start = torch.tensor(-math.log(settings.temperature))
    return nn.Parameter(start, requires_grad=settings.learn_temperature)


@torch.no_grad()
def clamped_scale(log_scale: nn.Parameter) -> Tensor:
    """Clamp it in place as that of image-text pairs. Returns the scale."""
    return log_scale.clamp_(0, MAX_LOGIT_SCALE).exp()


def projection(input_width: int, settings: ViewsConfig) -> nn.Sequential:
    """(B, input_width) -> (B, settings.width)"""
    return nn.Sequential(
        nn.Linear(input_width, settings.hidden),
        nn.LayerNorm(settings.hidden),
        nn.GELU(),
        nn.Linear(settings.hidden, settings.width),
    )


def embed_views(encoder: Any, images: list[Tensor], draws: Tensor | None) -> list[Tensor]:
    """(B, embed_dim) embeddings of each view, not of unit norm.

    images: (B, 3, H, W) of each view, as the model takes them
    draws: (B, number of views * num_draws) for patch dropout
    """
    # One pass over all views: twice the rows cost less than two passes.
    rows = torch.cat(images)
    if draws is None:
        embeddings = encoder.visual(rows)
    else:
        embeddings = encoder.visual(rows, torch.cat(draws.chunk(len(images), dim=1)))
    return list(embeddings.chunk(len(images)))
