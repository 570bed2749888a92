"""Contrastive predictive coding: the rows of patches of an image predict its later rows (CPC,
arXiv:1807.03748, section 3.3; arXiv:1905.09272)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.data.config import Probability
from clipx.losses.primitives import pairwise_logsumexp
from clipx.models.layers import blocks
from clipx.objectives.identities import position_draws
from clipx.objectives.objective import Features, Objective, Parts, Views
from clipx.objectives.views import ViewsConfig, clamped_scale, log_scale
from clipx.types import Batch, LossOutput, Pool

FIRST_AHEAD = 2
"""The first row below that shares no pixel with a row, from which a prediction could copy."""


@config
class Config:
    """Trains the image tower alone. Captions, `loss` and `pool.queue` are not used."""

    views: ViewsConfig = ViewsConfig()
    """One view is used. `hidden` is the width inside of the context's layer."""
    grid: int = Field(default=3, ge=3, le=14)
    """The image is cut into grid x grid patches that overlap by half; each passes the tower as an
    image."""
    color_drop: Probability = 0.8
    """Share of the patches of which one color channel alone is left, as gray. With all
    colors, these alone identify the patches of an image, and shapes are not learned (the
    augmentation of each patch in arXiv:1905.09272)."""

    contrasts_text = False

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        return [self.views.augmentation]

    def build(self, parts: Parts) -> Predictive:
        predictor = RowPredictor(parts.embed_dim, self.grid, self.views)
        return Predictive(
            parts.encoder, predictor, self, normalize=parts.normalize, seed=parts.seed
        )


class RowPredictor(nn.Module):
    """Embeddings of the patches of an image -> what each patch looks like to the loss, and what the
    rows above predict of it."""

    def __init__(self, embed_dim: int, grid: int, settings: ViewsConfig) -> None:
        super().__init__()
        self.grid = grid
        self.position = nn.Parameter(0.02 * torch.randn(grid * grid, embed_dim))
        # The paper's context is a PixelCNN. Attention to the patch's own row and those above it
        # sees the same patches.
        self.context = nn.TransformerEncoderLayer(
            embed_dim,
            embed_dim // 64 if embed_dim % 64 == 0 else 1,
            settings.hidden,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.target = nn.Linear(embed_dim, settings.width)
        # One map for each number of rows ahead (equation 3 of arXiv:1807.03748).
        maps = {}
        for k in range(FIRST_AHEAD, grid):
            maps[str(k)] = nn.Linear(embed_dim, settings.width)
        self.ahead = nn.ModuleDict(maps)
        row = torch.arange(grid).repeat_interleave(grid)
        self.register_buffer("is_below", row[None] > row[:, None], persistent=False)

    def forward(self, patches: Tensor) -> Features:
        """patches: (B, grid * grid, embed_dim), row by row. Returns unit rows: target (B, grid *
        grid, width), and ahead_k (B, (grid - k) * grid, width), predictions of row k and those
        below it from k rows above."""
        context = self.context(patches + self.position, src_mask=self.is_below)
        features = {"target": F.normalize(self.target(patches).float(), dim=-1)}
        for k, linear in self.ahead.items():
            known = context[:, : (self.grid - int(k)) * self.grid]
            features[f"ahead_{k}"] = F.normalize(linear(known).float(), dim=-1)
        return features


class Predictive(Objective):
    """Each prediction against the patches of all images of the global batch.

    Views: image (B, 3, H, W) uint8, color_draws (B, grid * grid), draws where the image tower needs
    random numbers. Features: those of `RowPredictor`.
    """

    trained_parts = ("visual.",)

    def __init__(
        self,
        encoder: Any,
        predictor: RowPredictor,
        settings: Config,
        *,
        normalize: Callable[[Tensor], Tensor],
        seed: int = 0,
    ) -> None:
        super().__init__(encoder)
        self.predictor = predictor
        self.log_scale = log_scale(settings.views)
        self._color_drop = settings.color_drop
        self._normalize = normalize
        self._seed = seed

    def prepare(self, batch: Batch) -> Views:
        num_patches = self.predictor.grid**2
        draws_per_patch = 1 + self.encoder.num_draws
        draws = position_draws(self._seed, batch.positions, num_patches * draws_per_patch)
        views = {"image": batch.views["image"], "color_draws": draws[:, :num_patches]}
        if self.encoder.num_draws:
            views["draws"] = draws[:, num_patches:]
        return views

    def embed(self, views: Views) -> Features:
        patches = cut(self._normalize(views["image"]), self.predictor.grid)
        patches = drop_colors(patches, views["color_draws"].flatten(), self._color_drop)
        if "draws" in views:
            draws = views["draws"].reshape(len(patches), -1)
            embeddings = self.encoder.visual(patches, draws)
        else:
            embeddings = self.encoder.visual(patches)
        return self.predictor(embeddings.unflatten(0, (len(views["image"]), -1)))

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        """The mean over all predictions. Those of k rows ahead are compared with patches of the
        rows that they can be of: a column for each target, so that none comes twice."""
        scale = self.log_scale.exp()
        grid = self.predictor.grid
        losses = []
        hits = []
        for k in range(FIRST_AHEAD, grid):
            predictions = features[f"ahead_{k}"].flatten(0, 1)
            targets = features["target"][:, k * grid :].flatten(0, 1)
            lse = pairwise_logsumexp(predictions, targets, pool, scale=scale)
            losses.append(lse.rows - scale * (predictions * targets).sum(-1))
            hits.append(lse.own_is_nearest.float())
        accuracy = torch.cat(hits).mean()
        return LossOutput(torch.cat(losses).mean(), {"patch_accuracy": accuracy})

    def after_step(self) -> dict[str, Tensor]:
        return {"view_scale": clamped_scale(self.log_scale)}

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return blocks(self.encoder.visual), [self.encoder.visual, self.predictor]


def cut(image: Tensor, grid: int) -> Tensor:
    """(B, 3, S, S) -> (B * grid * grid, 3, S, S): the patches of each image, row by row, enlarged.
    Neighbors overlap by half, as those of arXiv:1905.09272 do."""
    size = image.shape[-1]
    step = size // (grid + 1)
    side = 2 * step
    # (B, 3, grid, grid, side, side); pixels that the patches do not reach are left out.
    last = (grid + 1) * step
    patches = image[:, :, :last, :last].unfold(2, side, step).unfold(3, side, step)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, side, side)
    return F.interpolate(patches, size=(size, size), mode="bilinear", align_corners=False)


def drop_colors(patches: Tensor, draws: Tensor, share: float) -> Tensor:
    """Leaves one channel, in place of all three, of a `share` of the patches.

    patches: (N, 3, S, S); draws: (N,) in [0, 1), which decide of which, and which channel
    """
    if share == 0:
        return patches
    channel = (draws * (3 / share)).long().clamp(max=2)
    index = channel[:, None, None, None].expand(-1, 1, *patches.shape[2:])
    gray = patches.gather(1, index).expand_as(patches)
    return torch.where((draws < share)[:, None, None, None], gray, patches)
