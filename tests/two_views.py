"""An objective that shares nothing with image-text pairs: SimCLR (arXiv:2002.05709) in miniature,
with a projection head and a temperature of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from clipx.losses.primitives import pairwise_logsumexp
from clipx.models.layers import blocks
from clipx.objectives.objective import Features, Objective, Views
from clipx.types import Batch, LossOutput, Pool


class TwoViews(Objective):
    """Views: a picture, and the same with its columns reversed."""

    def __init__(self, tower: Any, width: int, *, normalize: Any) -> None:
        super().__init__(tower)
        self.head = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self._normalize = normalize

    def prepare(self, batch: Batch) -> Views:
        return {"first": batch.views["image"], "second": batch.views["image"].flip(-1)}

    def embed(self, views: Views) -> Features:
        features = {}
        for name, image in views.items():
            # The whole tower without patch dropout, which needs draws.
            output = self.encoder(self._normalize(image))
            features[name] = F.normalize(self.head(output).float(), dim=-1)
        return features

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        first, second = features["first"], features["second"]
        scale = self.log_scale.exp()
        between = pairwise_logsumexp(first, second, pool, scale=scale)
        # Each view's other rows are negatives too, but not the row itself.
        within = [
            pairwise_logsumexp(rows, rows, pool, scale=scale, own="left out").rows
            for rows in (first, second)
        ]
        lse = torch.logaddexp(between.rows, within[0]) + torch.logaddexp(between.columns, within[1])
        positive = scale * (first * second).sum(-1)
        return LossOutput((lse / 2 - positive).mean())

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return blocks(self.encoder), [self.encoder]
