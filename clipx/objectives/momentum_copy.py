"""A moving average of modules, which encodes the keys of momentum contrast (arXiv:1911.05722)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from clipx.distributed.collectives import local


class MomentumCopy(nn.Module):
    """average <- m * average + (1 - m) * weight, for every parameter, after each step.

    It is always in evaluation mode: keys are computed without dropout and from all patches. Neither
    it nor the modules may have batch norm across ranks, so nothing leaks between the rows of a
    rank and they need not be shuffled, as they are in MoCo.
    """

    def __init__(self, source: nn.Module, momentum: float) -> None:
        super().__init__()
        self.average: Any = deepcopy(source).requires_grad_(False)
        self._source = [source]  # in a list, so that it is no part of this module
        self._momentum = momentum
        self.eval()

    def train(self, mode: bool = True) -> MomentumCopy:
        return super().train(False)

    @torch.no_grad()
    def update(self) -> None:
        """Called after each optimizer step."""
        for module in (self.average, self._source[0]):
            # FSDP2 frees a root's gathered weights after its backward pass, which keys do not have.
            if isinstance(module, FSDPModule):
                module.reshard()
        averages = []
        weights = []
        pairs = zip(self.average.parameters(), self._source[0].parameters(), strict=True)
        for average, weight in pairs:
            # Averages of sharded weights are sharded alike, so nothing travels.
            averages.append(local(average))
            weights.append(local(weight))
        torch._foreach_lerp_(averages, weights, 1 - self._momentum)
        buffers = zip(self.average.buffers(), self._source[0].buffers(), strict=True)
        for own, other in buffers:
            own.copy_(other)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return self.average(*inputs)
