"""Two views of each image, without captions: SimCLR (arXiv:2002.05709)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.models.layers import blocks
from clipx.objectives.identities import position_draws
from clipx.objectives.objective import Features, Objective, Parts, Views
from clipx.objectives.views import ViewContrast, ViewsConfig, embed_views
from clipx.types import Batch, LossOutput, Pool


@config
class Config:
    """Trains the image tower alone. Captions, `loss` and `pool.queue` are not used."""

    views: ViewsConfig = ViewsConfig()

    contrasts_text = False

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        return [self.views.augmentation] * 2

    def build(self, parts: Parts) -> TwoView:
        contrast = ViewContrast(parts.embed_dim, self.views)
        return TwoView(parts.encoder, contrast, normalize=parts.normalize, seed=parts.seed)


class TwoView(Objective):
    """Each view against all others of the global batch; the other view of its image is positive.

    Views: image and image_2 (B, 3, H, W) uint8, draws where the image tower needs random numbers.
    Features: first and second (B, width) of unit norm.
    """

    trained_parts = ("visual.",)

    def __init__(
        self,
        encoder: Any,
        contrast: ViewContrast,
        *,
        normalize: Callable[[Tensor], Tensor],
        seed: int = 0,
    ) -> None:
        super().__init__(encoder)
        self.contrast = contrast
        self._normalize = normalize
        self._seed = seed

    def prepare(self, batch: Batch) -> Views:
        views = {name: batch.views[name] for name in ("image", "image_2")}
        if num_draws := self.encoder.num_draws:
            views["draws"] = position_draws(self._seed, batch.positions, 2 * num_draws)
        return views

    def embed(self, views: Views) -> Features:
        images = [self._normalize(views["image"]), self._normalize(views["image_2"])]
        embeddings = embed_views(self.encoder, images, views.get("draws"))
        first, second = map(self.contrast, embeddings)
        return {"first": first, "second": second}

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        return self.contrast.loss(features["first"], features["second"], pool)

    def after_step(self) -> dict[str, Tensor]:
        return self.contrast.after_step()

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return blocks(self.encoder.visual), [self.encoder.visual, self.contrast.head]
