"""Image-text pairs with a queue whose rows come from slowly moving towers: momentum contrast
(arXiv:1911.05722) across modalities, as in ALBEF (arXiv:2107.07651)."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.models.layers import blocks
from clipx.objectives.image_text import ImageText
from clipx.objectives.momentum_copy import MomentumCopy
from clipx.objectives.objective import Features, Parts, Views
from clipx.types import UserError


@config
class Config:
    """The run's `loss` contrasts images with texts, and with the keys of earlier steps in
    `pool.queue`."""

    momentum: float = Field(default=0.995, ge=0, lt=1)
    """Share of the old average that a step keeps."""

    contrasts_text = True

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        return [of_run]

    def build(self, parts: Parts) -> MomentumPairs:
        if not parts.queue:
            raise UserError(
                "objective momentum_pairs fills pool.queue, which is 0: set it to some batches, or "
                "use objective=image_text"
            )
        return MomentumPairs(
            parts.encoder,
            parts.loss,
            momentum=self.momentum,
            **parts.of_pairs,
        )


class MomentumPairs(ImageText):
    """As `ImageText`, but the queue keeps what averages of both towers make of a batch. They change
    so slowly that keys of earlier steps fit those of this one, where features of the towers
    themselves are outdated after some steps.

    Features: those of ImageText, with key_image and key_text (B, D) of unit norm.
    """

    queued = ("key_image", "key_text")

    def __init__(self, encoder: Any, *parts: Any, momentum: float, **settings: Any) -> None:
        super().__init__(encoder, *parts, **settings)
        self.key_image = MomentumCopy(encoder.visual, momentum)
        self.key_text = MomentumCopy(encoder.text, momentum)

    def embed(self, views: Views) -> Features:
        features = super().embed(views)
        image = self.key_image(self._normalize(views["image"]))
        text = self.key_text(views["text"])
        features["key_image"] = F.normalize(image.float(), dim=-1)
        features["key_text"] = F.normalize(text.float(), dim=-1)
        return features

    def after_step(self) -> dict[str, Tensor]:
        """Move the averages, and clamp the temperature."""
        self.key_image.update()
        self.key_text.update()
        return super().after_step()

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        of_blocks, roots = super().shards()
        for copy in (self.key_image, self.key_text):
            of_blocks = of_blocks + blocks(copy.average)
            roots = [*roots, copy.average]
        return of_blocks, roots
