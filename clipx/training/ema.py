"""An exponential moving average of the weights, which often evaluates better than the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clipx.checkpoints.sharded import placed_like
from clipx.distributed.collectives import local

_COUNT = "num_updates"


class Ema:
    """average <- d * average + (1 - d) * weight, for every tensor of the model's state_dict.

    In float32 whatever the model's dtype, since 1 - d is too small a step for fewer bits. Integer
    buffers are copied. Averages of sharded weights are sharded alike, so nothing travels.

    decay: d after a warmup. Update t (from 0) takes min(decay, (1 + t) / (10 + t)): otherwise the
        random weights of the start would stay in the average for long
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._num_updates = 0
        self._average: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            self._average[name] = tensor.detach().to(dtype, copy=True)

    @torch.no_grad()
    def update(self) -> None:
        """Called after each optimizer step."""
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        self._num_updates += 1
        averages = []
        weights = []
        for name, weight in self._model.state_dict().items():
            average = self._average[name]
            if average.is_floating_point():
                averages.append(local(average))
                weights.append(local(weight).float())
            else:
                average.copy_(weight)
        # average + (1 - decay) * (weight - average), for all tensors in one call
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averages. Afterwards it has its own weights again, bit for
        bit."""
        # A copy, because averages are written into the model's own tensors: DDP, FSDP2 and compiled
        # graphs keep references to them.
        own = {name: local(t).clone() for name, t in self._model.state_dict().items()}
        self._copy_to_model(self._average)
        try:
            yield
        finally:
            self._copy_to_model(own)

    @torch.no_grad()
    def _copy_to_model(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._model.state_dict().items():
            local(tensor).copy_(local(values[name]))

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the model's names (DTensors for sharded weights), and `num_updates`."""
        return {**self._average, _COUNT: torch.tensor(self._num_updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """state: as returned by `state_dict`, or with whole tensors in place of DTensors"""
        missing = sorted(set(self._average) - set(state))
        assert not missing, f"no averages of {missing}"
        self._num_updates = int(state[_COUNT])
        for name, average in self._average.items():
            local(average).copy_(local(placed_like(state[name], average)))
