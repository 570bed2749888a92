"""Loss scaling for float16 (arXiv:1710.03740).

torch's GradScaler does the same, but takes no sharded parameters beside whole ones, and asks the
device once more whether the gradient is finite, which the step knows already.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from clipx.training.gradients import local

_FIRST, _AFTER = 2.0**16, 2000


class LossScaler:
    """The factor, by which gradients are kept above 6e-8, float16's smallest number. It is halved
    by every overflow, and doubled after `grow_after` steps without one."""

    def __init__(self, factor: float = _FIRST, *, grow_after: int = _AFTER) -> None:
        self.factor = factor
        self._grow_after, self._good = grow_after, 0

    def scale(self, value: Tensor) -> Tensor:
        return value * self.factor

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divides their gradients by the factor, in place."""
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.factor)  # a power of two: exact

    def update(self, *, overflowed: bool) -> None:
        """To be called after each step, alike on all ranks."""
        if overflowed:
            self.factor, self._good = self.factor / 2, 0
            return
        self._good += 1
        if self._good == self._grow_after:
            self.factor, self._good = self.factor * 2, 0

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "good": self._good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor, self._good = state["factor"], int(state["good"])
