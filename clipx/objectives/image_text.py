"""Image-text pairs: CLIP (arXiv:2103.00020), SigLIP (arXiv:2303.15343), and any other loss of
`clipx.losses`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.models.dual_encoder import DualEncoder
from clipx.objectives.identities import position_draws, row_ids
from clipx.objectives.mined import embed_negatives, hard_negatives, negative_ids
from clipx.objectives.objective import DataUse, Features, Objective, Parts, Views
from clipx.objectives.pairs import clamp_temperature, pair_loss
from clipx.objectives.queue import RowQueue
from clipx.types import Batch, Loss, LossOutput, Pool


@config
class Config(DataUse):
    """The run's `loss` contrasts images with texts."""

    contrasts_text = True

    @property
    def takes_negatives(self) -> bool:
        return True

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        return [of_run]

    def build(self, parts: Parts) -> ImageText:
        return ImageText(
            parts.encoder,
            parts.loss,
            **parts.of_pairs,
        )


class ImageText(Objective):
    """Each image against the captions of the global batch, and the other way round.

    Views: image (B, 3, H, W) uint8, text (B, T) int64 (or features of locked towers in their
    place), draws (B, num_draws) where the image tower needs random numbers, ids (B, K) where the
    loss masks by them. Features: image and text (B, D) of unit norm, ids. With mined negatives, see
    `objectives.mined`.

    queued: the features of a batch that the queue keeps
    """

    positives = (("image", "text"),)
    queued: tuple[str, str] = ("image", "text")

    def __init__(
        self,
        encoder: DualEncoder,
        loss: Loss,
        *,
        normalize: Callable[[Tensor], Tensor],
        seed: int = 0,
        pad_id: int = 0,
        queue: int = 0,
        num_views: int = 1,
    ) -> None:
        """
        normalize: images of a batch on the device -> the model's input
        seed: of a sample's draws (patch dropout); pad_id: the token that pads captions
        queue: pairs of earlier steps that serve as further negatives
        num_views: of an image, each with draws of its own
        """
        super().__init__(encoder)
        self.pair_loss = loss
        self.queue = RowQueue(queue) if queue else None
        self._normalize = normalize
        self._seed = seed
        self._pad_id = pad_id
        self._num_views = num_views

    def prepare(self, batch: Batch) -> Views:
        views = dict(batch.views)
        # Functions of (seed, position) rather than draws in the tower: then the same patches are
        # dropped on any number of ranks, and again in the second pass of GradCache.
        if num_draws := self.encoder.num_draws:
            count = num_draws * self._num_views
            views["draws"] = position_draws(self._seed, batch.positions, count)
        if kinds := self.pair_loss.id_kinds:
            views["ids"] = row_ids(batch, kinds, pad_id=self._pad_id)
        if "negative_text" in views:
            views |= negative_ids(batch.views, pad_id=self._pad_id)
        return views

    def embed(self, views: Views) -> Features:
        image = self._normalize(views["image"])  # travels as uint8, a quarter of the bytes
        features = {
            "image": self.encoder.encode_image(image, views.get("draws")),
            "text": self.encoder.encode_text(views["text"]),
        }
        if "ids" in views:
            features["ids"] = views["ids"]
        if "negative_text" in views:
            features |= embed_negatives(self.encoder, views)
        return features

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        return pair_loss(
            self.pair_loss,
            self.encoder,
            self.queue,
            features["image"],
            features["text"],
            pool=pool,
            ids=features.get("ids"),
            hard=hard_negatives(features),
            queued=(features[self.queued[0]], features[self.queued[1]]),
        )

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return self.encoder.blocks(), [self.encoder.visual, self.encoder.text]

    def after_step(self) -> dict[str, Tensor]:
        of_queue = self.queue.metrics() if self.queue is not None else {}
        return {**clamp_temperature(self.encoder), **of_queue}
