"""Any loss at several widths of the embedding, so that its first coordinates are an embedding too
(arXiv:2205.13147)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import component, config
from clipx.types import HardNegatives, Loss, LossOutput, Negatives, Pool, UserError


@config
class Config:
    """The loss is the sum over widths of weight times the loss at that width."""

    widths: dict[PositiveInt, PositiveFloat] = Field(min_length=1)
    """width -> weight, for example `{512: 1, 256: 1, 64: 1}`. The first coordinates are used,
    scaled to unit norm."""
    loss: component("clipx.losses") = Field()  # type: ignore[valid-type]
    """The loss at each width."""

    def build(self) -> Matryoshka:
        return Matryoshka({width: self.loss.build() for width in self.widths}, self.widths)


class Matryoshka(nn.Module, Loss):
    """The metrics are those of the first width that is listed."""

    def __init__(self, losses: dict[int, Loss], widths: dict[int, float]) -> None:
        """losses: one for each width, each with its own state between steps, if it has one"""
        super().__init__()
        self.losses = losses
        self.widths = widths
        for width, loss in losses.items():
            if isinstance(loss, nn.Module):  # its state is saved with this module's
                self.add_module(f"at_{width}", loss)
            self.id_kinds = loss.id_kinds
            self.needs_logit_bias = loss.needs_logit_bias
            self.takes_negatives = loss.takes_negatives
            self.takes_hard_negatives = loss.takes_hard_negatives

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        *,
        pool: Pool,
        negatives: Negatives | None = None,
        hard: HardNegatives | None = None,
        **options: Any,
    ) -> LossOutput:
        """As the loss at each width. Raises UserError for a width beyond the embedding's."""
        available = image.shape[1]
        if max(self.widths) > available:
            raise UserError(
                f"loss.widths: {max(self.widths)} is more than the model's embed_dim {available}"
            )
        outputs = []
        for width in self.widths:
            # Rows of earlier steps and mined negatives are cut as those of the batch.
            past = negatives
            if negatives is not None:
                rows = first_coordinates(negatives.rows, width)
                columns = first_coordinates(negatives.columns, width)
                past = replace(negatives, rows=rows, columns=columns)
            further: dict[str, Any] = {}
            if hard is not None:
                cut = first_coordinates(hard.columns, width)
                further = {"hard": replace(hard, columns=cut)}
            outputs.append(
                self.losses[width](
                    first_coordinates(image, width),
                    first_coordinates(text, width),
                    pool=pool,
                    negatives=past,
                    **further,
                    **options,
                )
            )
        total = torch.zeros_like(outputs[0].loss)
        metrics = dict(outputs[0].metrics)
        for (width, weight), out in zip(self.widths.items(), outputs, strict=True):
            total = total + weight * out.loss
            metrics[f"loss_at_{width}"] = out.loss.detach()
        return LossOutput(total, metrics)


def first_coordinates(rows: Tensor, width: int) -> Tensor:
    """(B, D) -> (B, width) of unit norm"""
    return F.normalize(rows[:, :width], dim=-1)
