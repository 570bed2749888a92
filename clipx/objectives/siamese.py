"""Pairs of images, or pairs of texts, by one shared tower: a bi-encoder (Bromley et al., NIPS 1993;
Sentence-BERT, arXiv:1908.10084)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.data.sample import PairKind
from clipx.models.layers import blocks
from clipx.objectives.identities import caption_ids, position_draws, row_ids
from clipx.objectives.objective import DataUse, Features, Objective, Parts, Views
from clipx.objectives.pairs import clamp_temperature, pair_loss
from clipx.objectives.queue import RowQueue
from clipx.types import Batch, Loss, LossOutput, Pool, UserError


@config
class Config(DataUse):
    """The run's `loss` contrasts the first of each pair with the second. Only the tower of this
    kind is trained."""

    of: PairKind
    """images, of `data.pair_images`, or texts, of `data.pair_texts`."""

    contrasts_text = True

    @property
    def pair_kind(self) -> PairKind:
        return self.of

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        return [of_run, of_run] if self.of == "images" else []

    def build(self, parts: Parts) -> Siamese:
        """Raises UserError."""
        unknown = {"caption", "image"} & {*parts.loss.id_kinds}
        if self.of == "images" and unknown:
            raise UserError(
                f"the loss compares samples by {' and '.join(sorted(unknown))}, and pairs of "
                "images have neither captions nor an image of their own; use loss.concept=label "
                "with data.label_field, or loss.false_negatives=none"
            )
        return Siamese(
            parts.encoder,
            parts.loss,
            self.of,
            **parts.of_pairs,
        )


class Siamese(Objective):
    """The first of each pair is a row of the loss, in place of an image, and the second a column,
    in place of a text.

    Views: image and image_2 (B, 3, H, W) uint8, with draws (B, 2 * num_draws) where the image tower
    needs random numbers; or text and text_2 (B, T) int64; ids (B, K) where the loss uses them.
    Features: first and second (B, D) of unit norm, ids.
    """

    positives = (("first", "second"),)

    def __init__(
        self,
        encoder: Any,
        loss: Loss,
        kind: PairKind,
        *,
        normalize: Callable[[Tensor], Tensor],
        seed: int = 0,
        pad_id: int = 0,
        queue: int = 0,
    ) -> None:
        """See `ImageText`. kind: of the pairs"""
        super().__init__(encoder)
        # The temperature is the model's, as for images and texts.
        self.trained_parts = ("visual." if kind == "images" else "text.", "logit_")
        self.queue = RowQueue(queue) if queue else None
        self._loss = loss
        self._kind = kind
        self._normalize = normalize
        self._seed = seed
        self._pad_id = pad_id

    def prepare(self, batch: Batch) -> Views:
        names = ("image", "image_2") if self._kind == "images" else ("text", "text_2")
        views = {name: batch.views[name] for name in names}
        num_draws = self.encoder.num_draws
        if self._kind == "images" and num_draws:
            views["draws"] = position_draws(self._seed, batch.positions, 2 * num_draws)
        if kinds := self._loss.id_kinds:
            views["ids"] = torch.cat([self._ids(batch, kind) for kind in kinds], 1)
        return views

    def _ids(self, batch: Batch, kind: str) -> Tensor:
        """(B, 1) int64. Of texts, `image` ids are those of the first text, which takes the place of
        an image, and `caption` ids those of the second."""
        text = {"image": "text", "caption": "text_2"}.get(kind)
        if text is None:
            return row_ids(batch, [kind], pad_id=self._pad_id)
        ids = caption_ids(batch.views[text], pad_id=self._pad_id)
        return torch.from_numpy(ids)[:, None]

    def embed(self, views: Views) -> Features:
        if self._kind == "images":
            # One pass over both: twice the rows cost less than two passes.
            images = torch.cat([self._normalize(views["image"]), self._normalize(views["image_2"])])
            draws = views.get("draws")
            if draws is not None:
                draws = torch.cat(draws.chunk(2, dim=1))
            first, second = self.encoder.encode_image(images, draws).chunk(2)
        else:
            first = self.encoder.encode_text(views["text"])
            second = self.encoder.encode_text(views["text_2"])
        features = {"first": first, "second": second}
        if "ids" in views:
            features["ids"] = views["ids"]
        return features

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        return pair_loss(
            self._loss,
            self.encoder,
            self.queue,
            features["first"],
            features["second"],
            pool=pool,
            ids=features.get("ids"),
        )

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        tower = self.encoder.visual if self._kind == "images" else self.encoder.text
        return blocks(tower), [tower]

    def after_step(self) -> dict[str, Tensor]:
        of_queue = self.queue.metrics() if self.queue is not None else {}
        return {**clamp_temperature(self.encoder), **of_queue}
