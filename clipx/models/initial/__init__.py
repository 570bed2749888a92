"""Where a run's first weights come from. Each module holds `Config` with `build()`, which gives an
`Initial`."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class Initial(Protocol):
    def prepare(self) -> None:
        """Put in place what is missing on this machine. Called before the model is built, on the
        first rank before the others. Raises UserError."""
        ...

    @property
    def source(self) -> str:
        """The files that the weights come from, for the log. Known after `prepare`."""
        ...

    def load(self, model: nn.Module) -> list[str]:
        """Fill the parameters of a new DualEncoder, after `prepare`. Returns what the user should
        know. Raises UserError."""
        ...
