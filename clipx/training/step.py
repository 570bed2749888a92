"""One optimizer step: all rows at once, or in micro-batches that give the same gradient.

Micro-batches are those of GradCache (arXiv:2101.06983). A contrastive loss cannot be split into
parts, but its embeddings can: embed every micro-batch without a graph, compute the loss once over
all rows, then embed each micro-batch again with a graph and backpropagate the gradients of its
embeddings. That costs a third more compute, and only one micro-batch's activations are alive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from clipx.objectives.objective import Features, Views
from clipx.training.gradients import clip_gradients
from clipx.training.learner import Learner
from clipx.types import Batch, LossOutput, Pool

Outcome = Literal["updated", "nonfinite", "overflow"]


@dataclass(frozen=True)
class StepResult:
    """
    metrics: detached scalars by log name, means over ranks: loss, the loss's own, grad_norm, and
        those of the objective, such as scale and clamped
    outcome: `overflow` is a gradient beyond float16's range, to which the scaler adapts
    bad_rows: this rank's rows with non-finite features, if the outcome is not `updated`
    requests: for each request, whether any rank made it; the same on all ranks
    """

    metrics: dict[str, Tensor]
    outcome: Outcome
    bad_rows: list[int]
    requests: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Step:
    """The settings of all steps of a run. Calling it takes one step.

    micro_batch_size: local rows that are embedded at a time; None: all
    average: mean over ranks of a small vector
    mark: called at the start of each part of a step, for the monitor of hanging ranks
    """

    learner: Learner
    pool: Pool
    clip_grad_norm: float | None = None
    micro_batch_size: int | None = None
    average: Callable[[Tensor], Tensor] = field(default=lambda values: values)
    mark: Callable[[Literal["forward", "loss"]], None] = field(default=lambda phase: None)

    def __call__(self, batch: Batch, *requests: bool) -> StepResult:
        """Forward, backward, clip, update. If the loss or the gradient of any rank is not finite,
        no rank updates.

        requests: of this rank to all ranks; they travel with the metrics
        """
        learner, device = self.learner, self.device
        self.mark("forward")
        views = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in learner.objective.prepare(batch).items()
        }
        if self.micro_batch_size is None or self.micro_batch_size >= len(batch.keys):
            features, out = self._at_once(views)
        else:
            features, out = self._in_micro_batches(views, self.micro_batch_size)
        learner.model.finish_gradients()

        metrics, values, any_requests = self._reduce_metrics(out, requests)
        bad_rows: list[int] = []
        if all(map(math.isfinite, values)):
            learner.optimizer.step()
            outcome: Outcome = "updated"
        else:
            outcome = self._why_skipped(metrics["loss"])
            bad_rows = nonfinite_rows(features)
        metrics |= learner.objective.after_step()
        scaler = learner.precision.scaler
        if scaler is not None and outcome != "nonfinite":
            scaler.update(overflowed=outcome == "overflow")
        learner.optimizer.zero_grad(set_to_none=True)
        return StepResult(metrics, outcome, bad_rows, any_requests)

    @property
    def device(self) -> torch.device:
        return self.learner.precision.device

    def _embed(self, views: Views) -> Features:
        with self.learner.precision.autocast():
            return self.learner.model(views)

    def _loss(self, features: Features) -> LossOutput:
        self.mark("loss")
        return self.learner.objective.loss(features, self.pool)

    def _scaled(self, value: Tensor) -> Tensor:
        """float16 keeps no gradient below 6e-8, so gradients of a multiple of the loss are
        computed."""
        scaler = self.learner.precision.scaler
        return value if scaler is None else scaler.scale(value)

    def _at_once(self, views: Views) -> tuple[Features, LossOutput]:
        features = self._embed(views)
        out = self._loss(features)
        self._scaled(out.loss).backward()
        return features, out

    def _in_micro_batches(self, views: Views, size: int) -> tuple[Features, LossOutput]:
        """Gradients as of all rows at once."""
        parts = split(views, size)
        random_states = []
        embedded = []
        for part in parts:
            random_states.append(random_state(self.device))
            with torch.no_grad():
                embedded.append(self._embed(part))
        features = {name: torch.cat([e[name] for e in embedded]) for name in embedded[0]}
        leaves = {
            name: feature.requires_grad_()
            for name, feature in features.items()
            if feature.is_floating_point()
        }
        out = self._loss(features)
        # Not backward(): parameters that the loss uses itself, such as the temperature, must get
        # their gradient in the last backward pass, in which ranks exchange gradients.
        parameters = [p for p in self.learner.objective.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(
            out.loss, [*leaves.values(), *parameters], allow_unused=True
        )
        of_features = dict(zip(leaves, gradients, strict=False))
        of_parameters = gradients[len(leaves) :]

        start = 0
        for part, state in zip(parts, random_states, strict=True):
            stop = start + num_rows(part)
            is_last = stop == num_rows(views)
            set_random_state(state, self.device)  # dropout draws the same as before
            with self.learner.model.accumulating(last=is_last):
                outputs = self._embed(part)
                pairs: list[tuple[Tensor, Tensor | None]] = [
                    (outputs[name], gradient[start:stop])
                    for name, gradient in of_features.items()
                    if gradient is not None
                ]
                if is_last:
                    pairs += zip(parameters, of_parameters, strict=True)
                self._backward(pairs)
            start = stop
        return features, out

    def _backward(self, pairs: list[tuple[Tensor, Tensor | None]]) -> None:
        """Backpropagate from (output, gradient of the loss for it); not into what is locked."""
        trained = [(x, g) for x, g in pairs if g is not None and x.requires_grad]
        if trained:
            outputs, gradients = zip(*trained, strict=True)
            torch.autograd.backward(outputs, [self._scaled(g) for g in gradients])

    def _reduce_metrics(
        self, out: LossOutput, requests: tuple[bool, ...]
    ) -> tuple[dict[str, Tensor], list[float], tuple[bool, ...]]:
        """Clip the gradients. Returns the loss, its metrics and the gradient's norm before
        clipping as means over ranks, on the device and on the host, and the requests of any rank.

        All of it travels in one small reduction. A value that is not finite on one rank makes the
        mean non-finite on all of them, so that all ranks decide alike.
        """
        learner = self.learner
        parameters = learner.parameters
        if learner.precision.scaler is not None:
            learner.precision.scaler.unscale(parameters)
        norm = clip_gradients(parameters, self.clip_grad_norm)
        own = {"loss": out.loss, **out.metrics, "grad_norm": norm}
        stacked = torch.stack([value.detach().float() for value in own.values()])
        wishes = torch.tensor(requests, dtype=torch.float32).to(self.device, non_blocking=True)
        means = self.average(torch.cat([stacked, wishes]))
        # The one wait for the device in a step: the host must know before it updates.
        values = means.tolist()
        metrics = dict(zip(own, means.unbind(), strict=False))
        any_requests = tuple(value > 0 for value in values[len(own) :])
        return metrics, values[: len(own)], any_requests

    def _why_skipped(self, loss: Tensor) -> Outcome:
        """A finite loss with a gradient beyond float16's range is an overflow, to which the scaler
        adapts as long as its factor can shrink."""
        scaler = self.learner.precision.scaler
        can_adapt = scaler is not None and scaler.factor >= 1
        return "overflow" if can_adapt and loss.isfinite() else "nonfinite"


def num_rows(views: Views) -> int:
    return len(next(iter(views.values())))


def split(views: Views, size: int) -> list[Views]:
    """Parts of `size` rows; the last one may have fewer."""
    return [
        {name: tensor[start : start + size] for name, tensor in views.items()}
        for start in range(0, num_rows(views), size)
    ]


def nonfinite_rows(features: Features) -> list[int]:
    """Numbers of the rows that have a non-finite feature."""
    bad = torch.zeros(num_rows(features), dtype=torch.bool)
    for feature in features.values():
        if feature.is_floating_point():
            bad |= ~feature.detach().isfinite().flatten(1).all(1).cpu()
    return bad.nonzero()[:, 0].tolist()


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The generators of the CPU and of the device, from which dropout draws."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
