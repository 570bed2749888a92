"""Symmetric InfoNCE with a learnable temperature: the loss of CLIP (arXiv:2103.00020, figure 3;
arXiv:1807.03748)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from clipx.config import config
from clipx.losses._gradients import full_precision, with_gradients
from clipx.losses._streaming import (
    ID_KINDS,
    Accuracy,
    FalseNegatives,
    Tile,
    Tiles,
    add_logsumexp,
    add_products,
    past_blocks,
)
from clipx.types import Block, LossOutput, Pool


@config
class Config:
    """The temperature is the model's logit_scale."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all candidates that are not masked."""
    false_negatives: FalseNegatives = "none"
    """Which candidates are masked, as they are no negatives: those with the row's caption, its
    image, or either."""

    def build(self) -> InfoNCE:
        return InfoNCE(self.label_smoothing, ID_KINDS[self.false_negatives])


class InfoNCE:
    """Each image against all captions of the global batch, each caption against all its images.

    The loss is the mean over this rank's rows, and candidates have gradients, so the average of
    the ranks' gradients is the gradient of the global mean, for the towers and for logit_scale
    alike. All ranks must weigh the loss alike (`with_gradients`).

    This rank's images against all texts are a strip of the global matrix. Its columns' normalizers
    need the strips of all ranks, which is one number a column to exchange; then both directions'
    gradients are in the strip, so that neither the images nor a second strip, of texts against
    images, are needed: 4 matmuls (3 where the strip is small enough to keep) instead of 6.
    """

    def __init__(self, label_smoothing: float = 0.0, id_kinds: tuple[str, ...] = ()) -> None:
        self.label_smoothing = label_smoothing
        self.id_kinds = id_kinds

    @torch.compiler.disable
    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        *,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        pool: Pool,
        ids: Tensor | None = None,
    ) -> LossOutput:
        """image, text: (B, D) of unit norm; logit_scale: () log of the inverse temperature;
        logit_bias: () or None, of no effect on a softmax, so that its gradient is 0; ids: (B, K)
        int64, a column for each of `id_kinds`, or None.

        The gradients are computed here. A pool that keeps past rows is given these, unless
        gradients are off.
        """
        inputs = [image, text, logit_scale]
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        with torch.no_grad(), full_precision(image.device.type):
            strip = _Strip(image, text, logit_scale, pool, ids, self.label_smoothing)
            strip.normalize()
            loss = strip.loss()
            gradients = strip.differentiate() if wanted else None
            if wanted:
                pool.push(image, text, ids)
        if gradients is not None:
            if logit_bias is not None:  # a data-parallel wrapper waits for every parameter
                inputs.append(logit_bias)
                gradients.append(torch.zeros_like(logit_bias))
            loss = with_gradients(loss, inputs, gradients)
        return LossOutput(loss, {"image_to_text_accuracy": strip.accuracy.mean()})


@dataclass(frozen=True)
class _Side:
    """This rank's images or texts, as rows that seek their positive among all of the other.

    queries: (B, D) scaled; lse: (B,) log-sum-exp of a row's logits; total: (B,) their sum;
    gradient: (B, D) of 2B times the loss for what a row is multiplied with
    """

    queries: Tensor
    lse: Tensor
    total: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, queries: Tensor) -> _Side:
        zeros = queries.new_zeros(len(queries))
        return cls(queries, zeros - torch.inf, zeros, torch.zeros_like(queries))

    def through_queries(self) -> Tensor:
        """() 2B times the gradient of the log of the scale that is in all queries: the sum of
        derivative x logit over a row is the row's gradient times the row."""
        return (self.gradient * self.queries).sum()


class _Strip:
    """This rank's images against all texts, and both sides against past rows."""

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        pool: Pool,
        ids: Tensor | None,
        label_smoothing: float,
    ) -> None:
        dtype = torch.promote_types(image.dtype, torch.float32)
        self.scale = logit_scale.to(dtype).exp()
        self.images = _Side.of(image.to(dtype) * self.scale)
        self.texts = _Side.of(text.to(dtype) * self.scale)
        self.ids, self.smoothing = ids, label_smoothing
        self.tiles = Tiles(self.images.queries)
        self.accuracy = Accuracy(self.images.queries)
        self.count = torch.zeros_like(self.images.lse)  # of candidates that are not masked
        self.candidates = pool.share(text, *([] if ids is None else [ids]))
        # images seek their text among past texts, texts their image among past images
        self.past = list(zip((self.texts, self.images), past_blocks(pool, ids), strict=False))

    def normalize(self) -> None:
        """Find the normalizers of both sides, and all else that the value takes."""

        def act(block: Block) -> tuple[Tensor, ...]:
            lse = self.images.lse.new_full((len(block.rows[0]),), -torch.inf)
            total = torch.zeros_like(lse)
            for tile in self.tiles.first(self.images.queries, self.ids, block):
                self._see_rows(self.images, tile)
                scratch = self.tiles.scratch(tile)
                add_logsumexp(lse[tile.columns], tile.logits, 0, tile.logits.amax(0), scratch)
                if self.smoothing:
                    total[tile.columns] += tile.unmasked(tile.logits).sum(0)
            return (lse, total) if self.smoothing else (lse,)

        lse, *total = self.candidates.visit(
            act, ("logsumexp", "sum") if self.smoothing else ("logsumexp",)
        )
        self.texts.lse.copy_(lse)
        if total:
            self.texts.total.copy_(total[0])
        for side, block in self.past:
            for tile in self.tiles.first(side.queries, self.ids, block):
                self._see_rows(side, tile)

    def _see_rows(self, side: _Side, tile: Tile) -> None:
        if side is self.images:  # a text has as many candidates as the image of the same ids
            top = self.accuracy.see(tile)
            self.count[tile.rows] += (
                len(tile.candidates) if tile.masked is None else (~tile.masked).sum(1)
            )
        else:
            top = tile.logits.amax(1)
        add_logsumexp(side.lse[tile.rows], tile.logits, 1, top, self.tiles.scratch(tile))
        if self.smoothing:
            side.total[tile.rows] += tile.unmasked(tile.logits).sum(1)

    def loss(self) -> Tensor:
        lse = (self.images.lse + self.texts.lse).mean() / 2
        evenly = ((self.images.total + self.texts.total) / self.count).mean() / 2
        return lse - (1 - self.smoothing) * self.accuracy.positive.mean() - self.smoothing * evenly

    def differentiate(self) -> list[Tensor]:
        """Gradients of image, text and logit_scale, after `normalize`."""
        share = self.smoothing / self.count  # of the target, to each candidate that is not masked

        def act(block: Block) -> tuple[Tensor, ...]:
            *_, lse, their_share = block.rows
            gradient = self.images.lse.new_empty(block.rows[0].shape)
            for tile in self.tiles.again(self.images.queries, self.ids, block):
                weights = self._softmax_of_rows(self.images, tile)
                weights += tile.logits.sub_(lse[tile.columns]).exp_()
                tile.positives(weights).sub_(2 * (1 - self.smoothing))
                if self.smoothing:
                    weights -= tile.unmasked(share[tile.rows, None] + their_share[tile.columns])
                add_products(tile, weights, self.images.queries, self.images.gradient, gradient)
            return (gradient,)

        (text,) = self.candidates.visit(act, ("sum",), self.texts.lse, share)
        for side, block in self.past:
            for tile in self.tiles.again(side.queries, self.ids, block):
                weights = self._softmax_of_rows(side, tile)
                if self.smoothing:
                    weights -= tile.unmasked(share[tile.rows, None].expand_as(weights))
                side.gradient[tile.rows].addmm_(weights, tile.candidates)
        scale = self.images.through_queries() + self.texts.through_queries()
        image = self.images.gradient * self.scale
        text = text.add_(self.texts.gradient * self.scale)
        return [g / (2 * len(image)) for g in (image, text, scale)]

    def _softmax_of_rows(self, side: _Side, tile: Tile) -> Tensor:
        lse = side.lse[tile.rows, None]
        return torch.sub(tile.logits, lse, out=self.tiles.scratch(tile)).exp_()
