"""The loss of held-out pairs, as in training but in evaluation mode and without augmentation."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import component, config
from clipx.distributed.pool import LocalPool
from clipx.evaluators.captioned_set import CaptionedSet, read_captions
from clipx.evaluators.distributed import embed_images, embed_texts, exchange
from clipx.evaluators.sample_source import SourceOrHeldOut
from clipx.types import ImageTextEncoder, Loss, Result, Setting, UserError


@config
class Config:
    """A source that the run does not train on, and the loss to compute over it."""

    source: SourceOrHeldOut
    """Where the pairs are: any source that `data.sources` takes, or `held_out`, that part of the
    run's own corpus."""
    caption_field: str | None = None
    """As `data.caption_field`; null: that of the run for `held_out`, else `captions`. Of several
    captions of a sample the first is taken."""
    batch_size: int = Field(default=1024, ge=2, le=2**20)
    """Pairs contrasted with one another, in the order of the source; the last batch has the rest.
    The loss depends on it: with b pairs, chance is ln b for `infonce`."""
    loss: component("clipx.losses") = Field(default="infonce", validate_default=True)  # type: ignore[valid-type]
    """A loss that needs neither labels nor other ids of samples."""
    every: str | None = None
    """Interval in training, as a duration; null: at the end only."""

    def build(self) -> ValidationLoss:
        """Read the tables and captions of the source. Raises UserError."""
        loss = self.loss.build()
        if loss.id_kinds:
            raise UserError(
                f"a validation_loss with this loss needs the {', '.join(loss.id_kinds)} of each "
                "sample, which it does not read; use loss=infonce or loss=sigmoid with their "
                "default settings"
            )
        if self.source is None:
            raise UserError("validation_loss needs a `source`, such as held_out")
        captioned = read_captions(self.source, self.caption_field)
        return ValidationLoss(captioned, loss, self.batch_size)


class ValidationLoss:
    def __init__(self, captioned: CaptionedSet, loss: Loss, batch_size: int) -> None:
        """Raises UserError for a single pair."""
        self.images = captioned.images
        self.loss = loss
        self.batch_size = batch_size
        firsts = captioned.first_captions().tolist()
        self.captions = [captioned.captions[number] for number in firsts]
        if len(self.images) < 2:
            raise UserError("validation_loss: the source has one pair, and nothing to contrast")

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        count = len(self.images)
        image = embed_images(encoder, self.images.image, self.images.keys, setting)
        text = embed_texts(encoder, self.captions, setting)

        # Rank r takes the batches r, r + R ..., whole ones: a batch is the same on any number of
        # ranks, and so is its loss.
        starts = range(0, count, self.batch_size)
        own: dict[int, float] = {}
        for first in starts[setting.ranks.rank :: setting.ranks.world_size]:
            setting.check_stop()
            rows = slice(first, first + self.batch_size)
            own[first] = self._batch_loss(encoder, image[rows], text[rows], setting)
        losses: dict[int, float] = {}
        for of_rank in exchange(setting, own):
            losses.update(of_rank)

        # Weighted by rows, since the last batch is shorter.
        values = torch.tensor([losses[first] for first in starts], dtype=torch.float64)
        sizes = torch.tensor([min(self.batch_size, count - first) for first in starts])
        result = Result()
        result.add("loss", metrics.weighted_mean(values, sizes))
        result.add("num_samples", count)
        return result

    @torch.no_grad()
    def _batch_loss(self, encoder: Any, image: Tensor, text: Tensor, setting: Setting) -> float:
        """image, text: (b, D) of unit norm"""
        # The interface of encoders has no bias, which only the sigmoid loss needs.
        model = getattr(encoder, "model", None)
        bias = getattr(model, "logit_bias", None)
        if self.loss.needs_logit_bias and bias is None:
            raise UserError("the loss needs a logit_bias, and the model has none; use loss=infonce")
        out = self.loss(
            image.to(setting.device),
            text.to(setting.device),
            logit_scale=torch.tensor(math.log(encoder.scale), device=setting.device),
            logit_bias=bias,
            pool=LocalPool(),
        )
        return out.loss.item()
