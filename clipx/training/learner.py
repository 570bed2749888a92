"""Everything that training changes: model, optimizer, averages, loss scale, random state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from clipx.checkpoints.format import LoadedCheckpoint, Training
from clipx.checkpoints.sharded import load_optimizer, own_part, weights_like, whole
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import Sharded, Wrapped
from clipx.models.dual_encoder import DualEncoder
from clipx.objectives.objective import Objective
from clipx.training.ema import Ema
from clipx.training.precision import Precision
from clipx.types import UserError


@dataclass(frozen=True)
class Learner:
    """The one owner of the state that steps change and checkpoints hold.

    encoder: the whole model; the objective's encoder may be its heads alone
    model: the objective as ranks share it
    """

    runtime: Runtime
    encoder: DualEncoder
    objective: Objective
    model: Wrapped
    optimizer: torch.optim.Optimizer
    precision: Precision
    ema: Ema | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """The trained ones, in the optimizer's order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def is_sharded(self) -> bool:
        return isinstance(self.model, Sharded)

    def collect(
        self, copy: Callable[[Tensor], Tensor] = Tensor.cpu
    ) -> tuple[Mapping[str, Tensor], Training]:
        """(weights, the rest) for a checkpoint. All ranks take part.

        Rank 0 gets whole tensors, the others none. The exception is the optimizer of a sharded
        model: its state is the largest of all, so each rank gets its own part and nothing travels.
        Weights do travel, as for every forward pass, because their users need one file.

        copy: makes a copy of a tensor in host memory
        """
        is_main = self.runtime.is_main
        copy_on_main = copy if is_main else None
        # Each rank drops out other units, so each has a state of its own.
        random = self.runtime.gather(random_state(self.runtime.device))
        optimizer = self.optimizer.state_dict()
        if self.is_sharded:
            optimizer = own_part(optimizer, copy=copy, is_main=is_main)
        else:
            optimizer = whole(optimizer, copy=copy_on_main)
        scaler = self.precision.scaler
        training = Training(
            optimizer=optimizer,
            random=random,
            scaler=scaler.state_dict() if scaler else {},
            objective=whole(self.objective.own_state(), copy=copy_on_main),
            ema=whole(self.ema.state_dict(), copy=copy_on_main) if self.ema else None,
        )
        return whole(self.encoder.state_dict(), copy=copy_on_main), training

    def target(self, number: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """An empty tensor for the optimizer's state of a parameter, sharded as the parameter is."""
        parameter = self.parameters[number]
        # Moments have the shape of their parameter; other state, such as counts, is not sharded.
        if isinstance(parameter, DTensor) and parameter.shape == shape:
            return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        return torch.empty(shape, dtype=dtype)

    def misfit(self, saved: LoadedCheckpoint) -> str | None:
        """Why a checkpoint cannot be loaded into this run; None if it can. Changes nothing."""
        expected = self.encoder.state_dict()
        training = saved.training
        # From the weights to what depends on them: the first difference explains the others.
        if fault := _other_tensors(saved.weights, expected):
            return f"model.safetensors: {fault}"
        if training.ema is not None:
            count = {"num_updates": torch.tensor(0)}
            if fault := _other_tensors(training.ema, {**expected, **count}):
                return f"ema.safetensors: {fault}"
        groups = [len(group["params"]) for group in self.optimizer.param_groups]
        try:
            saved_groups = [len(group["params"]) for group in training.optimizer["param_groups"]]
        except (KeyError, TypeError):  # it has no groups
            saved_groups = None
        if saved_groups != groups:
            return "training.pt: the optimizer has other groups of parameters"
        if any(number not in range(sum(groups)) for number in training.optimizer["state"]):
            return "training.pt: the optimizer has a state for parameters that do not exist"
        if unknown := set(training.objective) - set(self.objective.own_state()):
            return f"training.pt: the objective has no {', '.join(sorted(unknown))}"
        if not all(_is_random_state(state) for state in training.random):
            return "training.pt: a random state is broken"
        return None

    def load(self, saved: LoadedCheckpoint) -> None:
        """Continue from a checkpoint. Raises UserError where it lacks averages that the run asks
        for."""
        training = saved.training
        scaler = self.precision.scaler
        # Copied in place: the optimizer and DDP's buckets refer to these tensors.
        self.encoder.load_state_dict(weights_like(saved.weights, self.encoder.state_dict()))
        own = weights_like(training.objective, self.objective.own_state())
        self.objective.load_state_dict(own, strict=False)  # without the encoder
        load_optimizer(self.optimizer, training.optimizer)
        if scaler is not None and training.scaler:
            scaler.load_state_dict(training.scaler)
        if self.ema is not None:
            if training.ema is None:
                raise UserError(
                    f"checkpoint {saved.path} has no averages of the weights; set ema=null"
                )
            self.ema.load_state_dict(training.ema)
        # A rank that the saved run did not have keeps the state that its seed gave it.
        if self.runtime.rank < len(training.random):
            set_random_state(training.random[self.runtime.rank], self.runtime.device)

    @contextmanager
    def evaluated(self, model_json: dict[str, Any]) -> Iterator[DualEncoder]:
        """The model that evaluations use: with the averages of the weights, where a run has them.

        Each rank evaluates its own share of the samples, and a forward pass of a sharded model
        needs all ranks at once; so each rank gets a whole copy.
        """
        with self.ema.applied() if self.ema else nullcontext():
            if not self.is_sharded:
                yield self.encoder
                return
            # Collected inside, so that it has the averages.
            weights = whole(self.encoder.state_dict(), copy=Tensor.cpu)
            with torch.random.fork_rng():  # building a model draws weights, which are overwritten
                copy = DualEncoder(model_json)
            copy.load_state_dict(weights)
        yield copy


def _other_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first difference from the expected tensors, in name or shape."""
    for name, tensor in expected.items():
        if name not in tensors:
            return f"{name} is missing"
        if tensors[name].shape != tensor.shape:
            return f"{name} has shape {list(tensors[name].shape)} instead of {list(tensor.shape)}"
    return None


def random_state(device: torch.device) -> dict[str, Tensor | None]:
    """The states of the generators of the CPU and of the device, from which dropout draws."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    # A run may go on without the GPU that it was saved with, or with its first one.
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def _is_random_state(state: Any) -> bool:
    if not isinstance(state, dict) or set(state) != {"torch", "cuda"}:
        return False
    cpu = state["torch"]
    expected = torch.get_rng_state()
    return isinstance(cpu, Tensor) and cpu.dtype == expected.dtype and cpu.shape == expected.shape
