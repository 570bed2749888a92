"""The weights that a run starts from. Each module holds a `Config` whose `build()` returns an
`Initial`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn


class Initial(ABC):
    def of_model(self, name: str) -> Initial:
        """The weights for `model.name`, for sources that need a name. Raises UserError."""
        return self

    def adapt(self, cfg: dict[str, Any]) -> dict[str, Any]:
        """The model JSON with the preprocessing that the weights were trained with, if the source
        knows it. Raises UserError."""
        return cfg

    @abstractmethod
    def prepare(self) -> None:
        """Fetch missing files. Called before the model is built, on the first rank before the
        others. Raises UserError."""

    @property
    @abstractmethod
    def source(self) -> str:
        """The files of the weights, for the log. Known after `prepare`."""

    @abstractmethod
    def load(self, model: nn.Module) -> list[str]:
        """Fill the parameters of a new DualEncoder, after `prepare`. Returns messages for the log.
        Raises UserError."""
