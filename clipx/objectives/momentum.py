"""Momentum contrast: MoCo v2 with a queue (arXiv:1911.05722, arXiv:2003.04297) and MoCo v3 without
(arXiv:2104.02057)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.losses.primitives import pairwise_logsumexp
from clipx.models.layers import blocks
from clipx.objectives.identities import position_draws
from clipx.objectives.momentum_copy import MomentumCopy
from clipx.objectives.objective import Features, Objective, Parts, Views
from clipx.objectives.queue import RowQueue
from clipx.objectives.views import ViewContrast, ViewsConfig, embed_views, projection
from clipx.types import Batch, LossOutput, Pool, UserError


@config
class Config:
    """Trains the image tower alone. Captions, `loss` and `pool.queue` are not used. MoCo v2 is the
    default; v3 is `queue: 0, symmetric: true, predictor: true`."""

    views: ViewsConfig = ViewsConfig(temperature=0.2)
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Share of the old average that a step keeps: 0.999 for runs of 100 thousand steps."""
    queue: int = Field(default=4096, ge=0)
    """Keys of earlier steps that serve as further negatives; 0: none."""
    symmetric: bool = False
    """Each view is a query and a key, instead of the first a query and the second its key: twice
    the compute, and twice the pairs."""
    predictor: bool = False
    """Queries pass a further head."""

    contrasts_text = False

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        return [self.views.augmentation] * 2

    def build(self, parts: Parts) -> Momentum:
        if self.queue > parts.num_samples:
            raise UserError(
                f"objective.queue {self.queue} is more than the {parts.num_samples} samples of the "
                "corpus, so it would hold keys of the row's own image; lower it"
            )
        contrast = ViewContrast(parts.embed_dim, self.views)
        return Momentum(parts.encoder, contrast, self, parts.normalize, seed=parts.seed)


class Momentum(Objective):
    """A query against the key of its image's other view, the other keys of the global batch, and
    keys of earlier steps. (In MoCo v2, against those of earlier steps alone.)

    Views: image and image_2 (B, 3, H, W) uint8, draws where the image tower needs random numbers.
    Features: query and key (B, width) of unit norm; query_2 and key_2 if both views are both.
    """

    trained_parts = ("visual.",)
    positives = (("query", "key"),)

    def __init__(
        self,
        encoder: Any,
        contrast: ViewContrast,
        settings: Config,
        normalize: Callable[[Tensor], Tensor],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder)
        self.contrast = contrast
        self.predictor = nn.Identity()
        if settings.predictor:
            self.predictor = projection(settings.views.width, settings.views)
        self.key_tower = MomentumCopy(encoder.visual, settings.momentum)
        self.key_head = MomentumCopy(contrast.head, settings.momentum)
        self.queue = RowQueue(settings.queue) if settings.queue else None
        self._symmetric = settings.symmetric
        self._normalize = normalize
        self._seed = seed

    def prepare(self, batch: Batch) -> Views:
        views = {name: batch.views[name] for name in ("image", "image_2")}
        if num_draws := self.encoder.num_draws:
            count = 2 * num_draws
            views["draws"] = position_draws(self._seed, batch.positions, count)
        return views

    def embed(self, views: Views) -> Features:
        first = self._normalize(views["image"])
        second = self._normalize(views["image_2"])
        draws = views.get("draws")
        if not self._symmetric:
            of_first = None if draws is None else draws[:, : self.encoder.num_draws]
            (embedding,) = embed_views(self.encoder, [first], of_first)
            return {"query": self._query(embedding), "key": self._key(second)}
        queries = embed_views(self.encoder, [first, second], draws)
        # The key of a query is of the other view.
        key, key_2 = self._key(torch.cat([second, first])).chunk(2)
        return {
            "query": self._query(queries[0]),
            "key": key,
            "query_2": self._query(queries[1]),
            "key_2": key_2,
        }

    def _query(self, embedding: Tensor) -> Tensor:
        return F.normalize(self.predictor(self.contrast.head(embedding)).float(), dim=-1)

    def _key(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return F.normalize(self.key_head(self.key_tower(image)).float(), dim=-1)

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        past = None
        if self.queue is not None:
            past = self.queue.rows(features["key"].device).get("key")
        loss, accuracy = self._direction(features["query"], features["key"], past, pool)
        if self._symmetric:
            other, _ = self._direction(features["query_2"], features["key_2"], past, pool)
            loss = (loss + other) / 2
        # After the loss, or keys would be their own negatives. Only training adds to the queue.
        if self.queue is not None and torch.is_grad_enabled():
            self.queue.push(pool, key=features["key"])
        return LossOutput(loss, {"view_accuracy": accuracy})

    def _direction(
        self, query: Tensor, key: Tensor, past: Tensor | None, pool: Pool
    ) -> tuple[Tensor, Tensor]:
        """() InfoNCE of queries against keys, and how often the own key is the nearest.

        past: (Q, width) keys of earlier steps, or None
        """
        scale = self.contrast.log_scale.exp()
        key = key.detach()
        lse = pairwise_logsumexp(query, key, pool, scale=scale)
        over_keys = lse.rows
        if past is not None:
            of_past = pairwise_logsumexp(query, past, None, scale=scale, own="absent").rows
            over_keys = torch.logaddexp(over_keys, of_past)
        positive = scale * (query * key).sum(-1)
        return (over_keys - positive).mean(), lse.own_is_nearest.float().mean()

    def after_step(self) -> dict[str, Tensor]:
        """Move the averages, and clamp the temperature."""
        self.key_tower.update()
        self.key_head.update()
        of_queue = self.queue.metrics() if self.queue is not None else {}
        return {**self.contrast.after_step(), **of_queue}

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        of_blocks = blocks(self.encoder.visual) + blocks(self.key_tower.average)
        roots = [self.encoder.visual, self.contrast.head, self.key_tower.average]
        roots.append(self.key_head.average)
        if not isinstance(self.predictor, nn.Identity):
            roots.append(self.predictor)
        return of_blocks, roots
