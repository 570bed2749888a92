"""Pairwise sigmoid loss: the loss of SigLIP (arXiv:2303.15343, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from clipx.config import config
from clipx.losses._gradients import full_precision, with_gradients
from clipx.losses._streaming import (
    ID_KINDS,
    Accuracy,
    FalseNegatives,
    Tile,
    Tiles,
    add_products,
    past_blocks,
)
from clipx.types import Block, LossOutput, Pool, UserError


@config
class Config:
    """Temperature and bias are the model's logit_scale and logit_bias."""

    false_negatives: FalseNegatives = "none"
    """Which candidates are left out, as they are no negatives: those with the row's caption, its
    image, or either."""

    def build(self) -> Sigmoid:
        return Sigmoid(ID_KINDS[self.false_negatives])


class Sigmoid:
    """Each image with each text of the global batch: do they belong together?

    The sum over all pairs, divided by the number of this rank's rows. No pair asks about another,
    so one visit does, and only texts travel. The average of the ranks' gradients is the gradient
    of the global loss, for the towers, logit_scale and logit_bias alike. All ranks must weigh the
    loss alike (`with_gradients`). Past rows, where a pool has them, are negatives of both sides.
    """

    def __init__(self, id_kinds: tuple[str, ...] = ()) -> None:
        self.id_kinds = id_kinds

    @torch.compiler.disable
    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        *,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        pool: Pool,
        ids: Tensor | None = None,
    ) -> LossOutput:
        """image, text: (B, D) of unit norm; logit_scale: () log of the inverse temperature;
        logit_bias: (); ids: (B, K) int64, a column for each of `id_kinds`, or None.

        The gradients are computed here. A pool that keeps past rows is given these, unless
        gradients are off. Raises UserError without a logit_bias.
        """
        if logit_bias is None:
            raise UserError(
                "the sigmoid loss needs a model with a logit_bias; put init_logit_bias: -10 and "
                "init_logit_scale: 2.3026 (ln 10) into the model's JSON (arXiv:2303.15343, 3.2)"
            )
        inputs = [image, text, logit_scale, logit_bias]
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        with torch.no_grad(), full_precision(image.device.type):
            pairs = _Pairs(image, text, logit_scale, logit_bias, ids, wanted=wanted)
            gradients = pairs.visit(pool)
            loss, accuracy = pairs.loss, pairs.accuracy.mean()
            if wanted:
                pool.push(image, text, ids)
        if wanted:
            loss = with_gradients(loss, inputs, gradients)
        return LossOutput(loss, {"image_to_text_accuracy": accuracy})


class _Pairs:
    """loss: () so far; wanted: whether gradients are"""

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        ids: Tensor | None,
        *,
        wanted: bool,
    ) -> None:
        dtype = torch.promote_types(image.dtype, torch.float32)
        self.scale, self.bias = logit_scale.to(dtype).exp(), logit_bias.to(dtype)
        self.text, self.ids, self.wanted = text, ids, wanted
        self.images, self.texts = image.to(dtype) * self.scale, text.to(dtype) * self.scale
        self.tiles = Tiles(self.images)
        self.accuracy = Accuracy(self.images)
        self.loss = self.images.new_zeros(())
        self.of_bias = self.images.new_zeros(())

    def visit(self, pool: Pool) -> list[Tensor]:
        """Gradients of image, text, logit_scale and logit_bias, if they are wanted."""
        of_image, of_text = torch.zeros_like(self.images), torch.zeros_like(self.texts)

        def act(block: Block) -> tuple[Tensor, ...]:
            gradient = self.images.new_empty(block.rows[0].shape)
            for tile in self.tiles.once(self.images, self.ids, block):
                self.accuracy.see(tile)
                weights = self._judge(tile)
                if self.wanted:
                    add_products(tile, weights, self.images, of_image, gradient)
            return (gradient,) if self.wanted else ()

        candidates = pool.share(self.text, *([] if self.ids is None else [self.ids]))
        home = candidates.visit(act, ("sum",) if self.wanted else ())
        sides = ((self.texts, of_text), (self.images, of_image))
        for (rows, of_rows), block in zip(sides, past_blocks(pool, self.ids), strict=False):
            for tile in self.tiles.once(rows, self.ids, block):
                if rows is self.images:
                    self.accuracy.see(tile)
                weights = self._judge(tile)
                if self.wanted:
                    of_rows[tile.rows].addmm_(weights, tile.candidates)
        # The sum over a row of gradient x (logit - bias) is the gradient of its query, times it.
        scale = (of_image * self.images).sum() + (of_text * self.texts).sum()
        text = of_text * self.scale + sum(home)
        self.loss /= len(self.images)
        return [g / len(self.images) for g in (of_image * self.scale, text, scale, self.of_bias)]

    def _judge(self, tile: Tile) -> Tensor:
        """Add the tile's pairs to the loss. Returns (r, c), its derivative for the logits."""
        logits, scratch = tile.logits.add_(self.bias), self.tiles.scratch(tile)
        # -log sigmoid(-z) of a negative is softplus(z), -log sigmoid(z) of a positive is that - z
        self.loss += softplus_sum(logits, scratch) - tile.positives(logits).sum()
        weights = torch.sigmoid(logits, out=scratch)
        tile.positives(weights).sub_(1)
        self.of_bias += weights.sum()
        return weights


def softplus_sum(logits: Tensor, scratch: Tensor) -> Tensor:
    """() sum of log(1 + e^z), as max(z, 0) + log(1 + e^-|z|).

    On CPUs a log takes ten times as long as an exp, so it is taken of products of 512 factors of 1
    to 2. They are float64: in float32, 1 + 1e-5 has no more than three digits of the 1e-5.
    """
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for part in torch.abs(logits, out=scratch).neg_().exp_().split(512, dim=1):
        total += part.double().add_(1).prod(1).log_().sum()
    return total + torch.clamp(logits, min=0, out=scratch).sum()
