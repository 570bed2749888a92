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
from clipx.training.learner import Learner, random_state, set_random_state
from clipx.training.precision import autocast
from clipx.types import Batch, LossOutput, Pool

Outcome = Literal["updated", "nonfinite", "overflow"]


@dataclass(frozen=True)
class StepResult:
    """
    metrics: detached scalars by log name, means over ranks: loss, the loss's own, grad_norm, and
        those of the objective, such as scale and clamped
    outcome: `overflow` is a gradient beyond float16's range, to which the scaler adapts
    bad_rows: this rank's rows with non-finite features, if the outcome is not `updated`
    features: of this rank's rows, without graph
    requests: for each request, whether any rank made it; the same on all ranks
    """

    metrics: dict[str, Tensor]
    outcome: Outcome
    bad_rows: list[int]
    requests: tuple[bool, ...] = ()
    features: Features = field(default_factory=dict)


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
        learner = self.learner
        self.mark("forward")
        views = {}
        for name, tensor in learner.objective.prepare(batch).items():
            views[name] = tensor.to(learner.precision.device, non_blocking=True)
        if self.micro_batch_size is None or self.micro_batch_size >= len(batch.keys):
            features = self._embed(views)
            out = self._loss(features)
            learner.precision.scaled(out.loss).backward()
        else:
            features, out = self._in_micro_batches(views, self.micro_batch_size)
        learner.model.finish_gradients()

        metrics, values, any_requests = self._reduce_metrics(out, requests)
        scaler = learner.precision.scaler
        bad_rows: list[int] = []
        outcome: Outcome = "nonfinite"
        if all(map(math.isfinite, values)):
            learner.optimizer.step()
            outcome = "updated"
        else:
            bad_rows = nonfinite_rows(features)
            # A finite loss with a gradient beyond float16's range is no fault of the samples: the
            # scaler adapts to it, as long as its factor can shrink.
            if scaler is not None and scaler.factor >= 1 and metrics["loss"].isfinite():
                outcome = "overflow"
        metrics |= learner.objective.after_step()
        if scaler is not None and outcome != "nonfinite":
            scaler.update(overflowed=outcome == "overflow")
        # None rather than zeros: the first backward then writes where it would have to add.
        learner.optimizer.zero_grad(set_to_none=True)
        detached = {name: feature.detach() for name, feature in features.items()}
        return StepResult(metrics, outcome, bad_rows, any_requests, detached)

    def _embed(self, views: Views) -> Features:
        precision = self.learner.precision
        with autocast(precision.device, precision.dtype):
            return self.learner.model(views)

    def _loss(self, features: Features) -> LossOutput:
        self.mark("loss")
        return self.learner.objective.loss(features, self.pool)

    def _in_micro_batches(self, views: Views, size: int) -> tuple[Features, LossOutput]:
        """Gradients as of all rows at once."""
        parts = split(views, size)
        device = self.learner.precision.device
        random_states = []
        embedded = []
        for part in parts:
            random_states.append(random_state(device))
            with torch.no_grad():  # activations are not kept
                embedded.append(self._embed(part))
        features: Features = {}
        leaves: Features = {}  # the features that have a gradient; ids do not
        for name in embedded[0]:
            features[name] = torch.cat([part[name] for part in embedded])
            if features[name].is_floating_point():
                leaves[name] = features[name].requires_grad_()
        out = self._loss(features)
        # Not backward(): parameters that the loss uses itself, such as the temperature, must get
        # their gradient in the last backward pass, in which ranks exchange gradients.
        parameters = [p for p in self.learner.objective.parameters() if p.requires_grad]
        inputs = [*leaves.values(), *parameters]
        gradients = torch.autograd.grad(out.loss, inputs, allow_unused=True)
        of_features = dict(zip(leaves, gradients, strict=False))
        of_parameters = gradients[len(leaves) :]

        start = 0
        for part, state in zip(parts, random_states, strict=True):
            stop = start + num_rows(part)
            is_last = stop == num_rows(views)
            set_random_state(state, device)  # dropout draws the same as before
            with self.learner.model.accumulating(last=is_last):
                # Now with a graph: from each output, backpropagate the gradient of the loss for it.
                outputs = self._embed(part)
                pairs: list[tuple[Tensor, Tensor | None]] = []
                for name, gradient in of_features.items():
                    rows = None if gradient is None else gradient[start:stop]
                    pairs.append((outputs[name], rows))
                if is_last:
                    pairs += zip(parameters, of_parameters, strict=True)
                # Outputs of locked towers have no graph.
                trained = [(x, g) for x, g in pairs if g is not None and x.requires_grad]
                if trained:
                    trained_outputs, of_outputs = zip(*trained, strict=True)
                    scaled = [self.learner.precision.scaled(g) for g in of_outputs]
                    torch.autograd.backward(trained_outputs, scaled)
            start = stop
        return features, out

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
            # Before clipping, whose limit is meant for the gradient of the loss itself.
            learner.precision.scaler.unscale(parameters)
        norm = clip_gradients(parameters, self.clip_grad_norm)
        own = {"loss": out.loss, **out.metrics, "grad_norm": norm}
        stacked = torch.stack([value.detach().float() for value in own.values()])
        flags = torch.tensor(requests, dtype=torch.float32).to(stacked.device, non_blocking=True)
        means = self.average(torch.cat([stacked, flags]))
        # The one wait for the device in a step: the host must know before it updates.
        values = means.tolist()
        metrics = dict(zip(own, means.unbind(), strict=False))
        any_requests = tuple(value > 0 for value in values[len(own) :])
        return metrics, values[: len(own)], any_requests


def num_rows(views: Views) -> int:
    return len(next(iter(views.values())))


def split(views: Views, size: int) -> list[Views]:
    """Parts of `size` rows; the last one may have fewer."""
    parts = []
    for start in range(0, num_rows(views), size):
        parts.append({name: tensor[start : start + size] for name, tensor in views.items()})
    return parts


def nonfinite_rows(features: Features) -> list[int]:
    """Numbers of the rows that have a non-finite feature."""
    bad = torch.zeros(num_rows(features), dtype=torch.bool)
    for feature in features.values():
        if feature.is_floating_point():
            bad |= ~feature.detach().isfinite().flatten(1).all(1).cpu()
    return bad.nonzero()[:, 0].tolist()
