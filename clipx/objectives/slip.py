"""Image-text pairs and views of each image together: SLIP (arXiv:2112.12750)."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.data.loader import view_name
from clipx.objectives.image_text import ImageText
from clipx.objectives.objective import Features, Parts, Views
from clipx.objectives.views import ViewContrast, ViewsConfig, embed_views
from clipx.types import LossOutput, Pool


@config
class Config:
    """The run's `loss` contrasts images with texts, and NT-Xent two views of each image."""

    views: ViewsConfig = ViewsConfig()
    view_weight: float = Field(default=1.0, gt=0)
    """Of the loss between views."""
    share_view: bool = False
    """Use the first view for the image-text pair too. Two images of a sample pass the tower, else
    three: the third with the augmentation of `data`."""

    contrasts_text = True

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        views = [self.views.augmentation] * 2
        return views if self.share_view else [of_run, *views]

    def build(self, parts: Parts) -> Slip:
        return Slip(
            ViewContrast(parts.embed_dim, self.views),
            parts.encoder,
            parts.loss,
            view_weight=self.view_weight,
            num_views=2 if self.share_view else 3,
            **parts.of_pairs,
        )


class Slip(ImageText):
    """Views: those of ImageText, with image_2 and, unless the first view is shared, image_3.
    Features: those of ImageText, with first and second (B, width) of unit norm."""

    positives = (("image", "text"), ("first", "second"))

    def __init__(
        self,
        contrast: ViewContrast,
        *parts: Any,
        view_weight: float,
        num_views: int,
        **settings: Any,
    ) -> None:
        super().__init__(*parts, num_views=num_views, **settings)
        self.contrast = contrast
        self._view_weight = view_weight
        self._image_names = [view_name(number) for number in range(num_views)]

    def embed(self, views: Views) -> Features:
        images = [self._normalize(views[name]) for name in self._image_names]
        embeddings = embed_views(self.encoder, images, views.get("draws"))
        features = {
            "image": F.normalize(embeddings[0].float(), dim=-1),
            "text": self.encoder.encode_text(views["text"]),
            "first": self.contrast(embeddings[-2]),
            "second": self.contrast(embeddings[-1]),
        }
        if "ids" in views:
            features["ids"] = views["ids"]
        return features

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        pairs = super().loss(features, pool)
        views = self.contrast.loss(features["first"], features["second"], pool)
        parts = {"pair_loss": pairs.loss.detach(), "view_loss": views.loss.detach()}
        total = pairs.loss + self._view_weight * views.loss
        return LossOutput(total, {**pairs.metrics, **views.metrics, **parts})

    def after_step(self) -> dict[str, Tensor]:
        return {**super().after_step(), **self.contrast.after_step()}

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        blocks, roots = super().shards()
        return blocks, [*roots, self.contrast.head]
