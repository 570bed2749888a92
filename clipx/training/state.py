"""What a run leaves in a checkpoint and takes up again: on any number of ranks, sharded or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from clipx.checkpoints.format import Checkpoint, Training, TrainState
from clipx.checkpoints.sharded import load_optimizer, own_part, weights_like, whole
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import Sharded
from clipx.models.dual_encoder import DualEncoder
from clipx.training.ema import Ema
from clipx.training.step import Step
from clipx.types import UserError


@dataclass(frozen=True)
class Parts:
    """All that training changes.

    encoder: the whole model; the step's may be its heads alone
    """

    runtime: Runtime
    encoder: DualEncoder
    step: Step
    ema: Ema | None

    def collect(
        self, copy: Callable[[Tensor], Tensor] = Tensor.cpu
    ) -> tuple[Mapping[str, Tensor], Training]:
        """(weights, the rest), whole, on rank 0; the others, which take part, get no tensors. Of a
        sharded model's optimizer every rank gets its own part: the largest of all, it does not
        travel. Weights do, as they do for every forward pass: whoever uses them needs one file.

        copy: of a tensor, in host memory
        """
        step, keep = self.step, copy if self.runtime.is_main else None
        device = self.runtime.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        random = self.runtime.gather({"torch": torch.get_rng_state(), "cuda": cuda})
        scaler = step.precision.scaler
        optimizer = step.optimizer.state_dict()
        if self.is_sharded:
            optimizer = own_part(optimizer, copy=copy, is_main=self.runtime.is_main)
        else:
            optimizer = whole(optimizer, copy=keep)
        training = Training(
            optimizer=optimizer,
            random=random,
            scaler=scaler.state_dict() if scaler else {},
            pool=whole(step.pool.state_dict(), copy=keep),
            ema=whole(self.ema.state_dict(), copy=keep) if self.ema else None,
        )
        return whole(self.encoder.state_dict(), copy=keep), training

    @property
    def is_sharded(self) -> bool:
        return isinstance(self.step.model, Sharded)

    def target(self, number: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Where a tensor of the optimizer goes: this rank's part of it, where it is sharded."""
        groups = self.step.optimizer.param_groups
        parameter = [p for group in groups for p in group["params"]][number]
        if isinstance(parameter, DTensor) and parameter.shape == shape:
            return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        return torch.empty(shape, dtype=dtype)

    def misfit(self, saved: Checkpoint) -> str | None:
        """What of a checkpoint cannot be taken up by this run, before anything of it is."""
        expected = self.encoder.state_dict()
        training = saved.training
        if fault := _other_tensors(saved.weights, expected):
            return f"model.safetensors: {fault}"
        if training.ema is not None:
            count = {"num_updates": torch.tensor(0)}
            if fault := _other_tensors(training.ema, {**expected, **count}):
                return f"ema.safetensors: {fault}"
        groups = [len(group["params"]) for group in self.step.optimizer.param_groups]
        if _group_sizes(training.optimizer) != groups:
            return "training.pt: the optimizer has other groups of parameters"
        if any(number not in range(sum(groups)) for number in training.optimizer["state"]):
            return "training.pt: the optimizer has a state for parameters that do not exist"
        if not all(_is_random_state(state) for state in training.random):
            return "training.pt: a random state is broken"
        return None

    def take_up(self, saved: Checkpoint) -> None:
        """Raises UserError where the checkpoint lacks the averages that the run asks for."""
        step, training = self.step, saved.training
        self.encoder.load_state_dict(weights_like(saved.weights, self.encoder.state_dict()))
        load_optimizer(step.optimizer, training.optimizer)
        step.pool.load_state_dict(training.pool)
        if step.precision.scaler and training.scaler:
            step.precision.scaler.load_state_dict(training.scaler)
        if self.ema is not None:
            if training.ema is None:
                raise UserError(
                    f"checkpoint {saved.path} has no averages of the weights; set ema=null"
                )
            self.ema.load_state_dict(training.ema)
        if self.runtime.rank < len(training.random):
            self._set_random(training.random[self.runtime.rank])

    @contextmanager
    def evaluated(self, model_json: dict[str, Any]) -> Iterator[DualEncoder]:
        """The model that evaluations see: the averages of the weights, where there are any.

        Of a sharded model every rank gets a whole copy of its own, because a forward pass of shards
        needs all ranks at once, and each has its own share of the samples.
        """
        with self.ema.applied() if self.ema else nullcontext():
            if not self.is_sharded:
                yield self.encoder
                return
            weights = whole(self.encoder.state_dict(), copy=Tensor.cpu)
            with torch.random.fork_rng():  # first weights are drawn, for nothing
                copy = DualEncoder(model_json)
            copy.load_state_dict(weights)
        yield copy

    def _set_random(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if self.runtime.device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.runtime.device)


def _other_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """How tensors differ from those expected, in name or shape."""
    for name, tensor in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name].shape != tensor.shape:
            return f"{name} has shape {list(found[name].shape)} instead of {list(tensor.shape)}"
    return None


def _group_sizes(optimizer: Mapping[str, Any]) -> list[int] | None:
    """The number of parameters in each group of an optimizer's state; None if it has no groups."""
    try:
        return [len(group["params"]) for group in optimizer["param_groups"]]
    except (KeyError, TypeError):
        return None


def _is_random_state(state: Any) -> bool:
    if not isinstance(state, dict) or set(state) != {"torch", "cuda"}:
        return False
    cpu = state["torch"]
    expected = torch.get_rng_state()
    return isinstance(cpu, Tensor) and cpu.dtype == expected.dtype and cpu.shape == expected.shape


def split_fingerprint(state: TrainState, runtime: Runtime) -> TrainState:
    """As this rank goes on: rank 0 carries the sum of all ranks' fingerprints."""
    return replace(state, fingerprint=state.fingerprint if runtime.is_main else 0)
