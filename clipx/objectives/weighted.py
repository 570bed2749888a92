"""A weighted sum of objectives over one model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from clipx.config import component, config
from clipx.data.augment import Augmentation
from clipx.data.loader import view_name
from clipx.objectives.objective import (
    DataUse,
    Features,
    Objective,
    Parts,
    Views,
    data_use,
)
from clipx.types import Batch, LossOutput, Pool, UserError


@config
class Config(DataUse):
    """Each objective has views of its own of an image, so that all their images pass the tower."""

    objectives: dict[str, component("clipx.objectives")] = Field(min_length=1)  # type: ignore[valid-type]
    """By names of your choice, with which their metrics begin."""
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Of each loss; 1 where it is not named."""

    @property
    def contrasts_text(self) -> bool:
        return any(objective.contrasts_text for objective in self.objectives.values())

    @property
    def needs_pixels(self) -> bool:
        return any(data_use(objective).needs_pixels for objective in self.objectives.values())

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        of_all = []
        for objective in self.objectives.values():
            of_all += objective.augmentations(of_run)
        return of_all

    def build(self, parts: Parts) -> Weighted:
        if unknown := set(self.weights) - set(self.objectives):
            raise UserError(
                f"objective.weights names {', '.join(sorted(unknown))}; the objectives are "
                f"{', '.join(self.objectives)}"
            )
        for name in self.objectives:
            # A module cannot have a child with the name of a method, such as `keys`.
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise UserError(f"objective.objectives: {name!r} cannot be used as a name")
        built = {}
        num_views = {}
        for name, objective in self.objectives.items():
            built[name] = objective.build(parts)
            num_views[name] = len(objective.augmentations(Augmentation()))
        return Weighted(parts.encoder, built, num_views, self.weights)


class Weighted(Objective):
    """The sum over objectives of weight times loss.

    num_views: images that each objective takes of a sample
    """

    def __init__(
        self,
        encoder: Any,
        objectives: dict[str, Objective],
        num_views: dict[str, int],
        weights: dict[str, float],
    ) -> None:
        super().__init__(encoder)
        self.objectives = nn.ModuleDict(objectives)
        self._num_views = num_views
        self._weights = weights
        trained: tuple[str, ...] = ()
        positives: list[tuple[str, str]] = []
        for name, objective in objectives.items():
            trained += objective.trained_parts
            for first, second in objective.positives:
                positives.append((f"{name}.{first}", f"{name}.{second}"))
        self.trained_parts = trained
        self.positives = tuple(positives)

    def prepare(self, batch: Batch) -> Views:
        views = {}
        first = 0
        for name, objective in self._each():
            # To each objective its images are image, image_2 ..., as if it were alone.
            own = {key: view for key, view in batch.views.items() if not key.startswith("image")}
            for number in range(self._num_views[name]):
                own[view_name(number)] = batch.views[view_name(first + number)]
            first += self._num_views[name]
            prepared = objective.prepare(replace(batch, views=own))
            views |= {f"{name}.{key}": view for key, view in prepared.items()}
        return views

    def embed(self, views: Views) -> Features:
        features = {}
        for name, objective in self._each():
            embedded = objective.embed(_below(name, views))
            features |= {f"{name}.{key}": feature for key, feature in embedded.items()}
        return features

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        total: Any = 0
        metrics = {}
        for name, objective in self._each():
            out = objective.loss(_below(name, features), pool)
            total = total + self._weights.get(name, 1.0) * out.loss
            metrics[f"{name}.loss"] = out.loss.detach()
            metrics |= {f"{name}.{key}": value for key, value in out.metrics.items()}
        return LossOutput(total, metrics)

    def after_step(self) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        for _, objective in self._each():
            # The temperature of the encoder, which several clamp, was changed by the first of them.
            metrics = {**objective.after_step(), **metrics}
        return metrics

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        blocks: dict[nn.Module, None] = {}
        roots: dict[nn.Module, None] = {}
        for _, objective in self._each():
            own_blocks, own_roots = objective.shards()
            blocks |= dict.fromkeys(own_blocks)  # each module once
            roots |= dict.fromkeys(own_roots)
        return list(blocks), list(roots)

    def _each(self) -> list[tuple[str, Any]]:
        return list(self.objectives.items())


def _below(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with that of an objective, without it."""
    prefix = f"{name}."
    found = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = tensor
    return found
