"""One optimizer step: all rows at once, or in micro-batches that give the same gradient.

Micro-batches are those of GradCache (arXiv:2101.06983). A contrastive loss does not split into
parts, its embeddings do: embed every micro-batch without a graph, take the loss once over all rows,
then embed each again with a graph and send the gradients of its embeddings back. That costs a third
more compute, and only one micro-batch's activations are alive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from clipx.data import preprocessing
from clipx.distributed.wrap import Features, Wrapped
from clipx.models.dual_encoder import DualEncoder
from clipx.training.device_batch import Rows, ids_of, rows_of
from clipx.training.gradients import clip_gradients
from clipx.training.precision import Precision
from clipx.types import Batch, LossOutput, Pool

Outcome = Literal["updated", "nonfinite", "overflow"]


@dataclass(frozen=True)
class Stepped:
    """metrics: detached scalars by log name, means over ranks: loss, the loss's own, grad_norm,
    scale, clamped (1 where the clamp changed logit_scale)
    outcome: `overflow` is a gradient beyond float16's range, which the scaler answers
    bad_rows: of this rank, those with non-finite features, where the outcome is not `updated`
    asked: for each thing that ranks may ask for, whether any of them did; all ranks see the same
    """

    metrics: dict[str, Tensor]
    outcome: Outcome
    bad_rows: list[int]
    asked: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Step:
    """What all steps of a run share. Calling it takes one step.

    model: `encoder` as the ranks share it
    micro_batch_size: local rows that are embedded at a time; None: all
    seed: of the draws of a sample (patch dropout)
    pad_id: the token that captions are padded with
    normalize: images of a batch on the device -> the model's input
    average: mean over ranks of a small vector
    mark: told which part of a step begins
    """

    model: Wrapped
    encoder: DualEncoder
    optimizer: torch.optim.Optimizer
    loss: Any
    pool: Pool
    precision: Precision
    device: torch.device
    clip_grad_norm: float | None = None
    micro_batch_size: int | None = None
    seed: int = 0
    pad_id: int = 0
    normalize: Callable[[Tensor], Tensor] = field(default=preprocessing.normalize)
    average: Callable[[Tensor], Tensor] = field(default=lambda values: values)
    mark: Callable[[Literal["forward", "loss"]], None] = field(default=lambda phase: None)

    def __call__(self, batch: Batch, *asks: bool) -> Stepped:
        """Forward, backward, clip, update. Where the loss or the gradient of any rank is not
        finite, no rank updates.

        asks: what this rank asks of all, which travels with the metrics
        """
        self.mark("forward")
        rows = rows_of(batch, seed=self.seed, num_draws=self.encoder.num_draws, device=self.device)
        ids = ids_of(batch, self.loss.id_kinds, pad_id=self.pad_id)
        ids = None if ids is None else ids.to(self.device, non_blocking=True)
        size = self.micro_batch_size
        if size is None or size >= len(rows):
            features, out = self._at_once(rows, ids)
        else:
            features, out = self._in_parts(rows.split(size), ids)
        self.model.finish_gradients()
        metrics, values, asked = self._measure(out, asks)
        if all(map(math.isfinite, values)):
            metrics |= self._update()
            outcome, bad_rows = "updated", []
        else:
            metrics |= {"scale": self._scale(), "clamped": torch.zeros((), device=self.device)}
            outcome, bad_rows = self._judge(metrics), nonfinite_rows(features)
        if self.precision.scaler is not None and outcome != "nonfinite":
            self.precision.scaler.update(overflowed=outcome == "overflow")
        self.optimizer.zero_grad(set_to_none=True)
        return Stepped(metrics, outcome, bad_rows, asked)

    def _embed(self, rows: Rows) -> Features:
        image = self.normalize(rows.image)
        with self.precision.autocast():
            return self.model(image, rows.text, rows.draws)

    def _loss(self, features: Features, ids: Tensor | None) -> LossOutput:
        self.mark("loss")
        image, text, scale, bias = features
        out = self.loss(image, text, logit_scale=scale, logit_bias=bias, pool=self.pool, ids=ids)
        # A data-parallel wrapper waits for the gradient of every parameter, also of a temperature
        # that the loss does not use.
        scalars = [value for value in (scale, bias) if value is not None]
        return replace(out, loss=out.loss + 0 * sum(scalars))

    def _scaled(self, value: Tensor) -> Tensor:
        """float16 keeps no gradient below 6e-8, so they are computed of a multiple of the loss."""
        scaler = self.precision.scaler
        return value if scaler is None else scaler.scale(value)

    def _at_once(self, rows: Rows, ids: Tensor | None) -> tuple[Features, LossOutput]:
        features = self._embed(rows)
        out = self._loss(features, ids)
        self._scaled(out.loss).backward()
        return features, out

    def _in_parts(self, parts: list[Rows], ids: Tensor | None) -> tuple[Features, LossOutput]:
        """Gradients as of all rows at once. logit_scale and logit_bias get theirs with the last
        part, once."""
        random, embedded = [], []
        for part in parts:
            random.append(random_state(self.device))
            with torch.no_grad():
                embedded.append(self._embed(part)[:2])
        image, text = (torch.cat(rows) for rows in zip(*embedded, strict=True))
        scale, bias = self.encoder.logit_scale, self.encoder.logit_bias
        features = (leaf(image), leaf(text), leaf(scale), None if bias is None else leaf(bias))
        out = self._loss(features, ids)
        out.loss.backward()
        gradients = [None if feature is None else feature.grad for feature in features]
        done = 0
        for part, state in zip(parts, random, strict=True):
            rows = slice(done, done + len(part))
            done += len(part)
            last = done == len(image)
            wanted = [None if g is None else g[rows] for g in gradients[:2]]
            set_random_state(state, self.device)
            with self.model.accumulating(last=last):
                again = self._embed(part)
                self._send_back(again, [*wanted, *(gradients[2:] if last else (None, None))])
        return features, out

    def _send_back(self, outputs: Features, gradients: list[Tensor | None]) -> None:
        """Gradients of the loss with respect to a part's outputs -> gradients of the parameters;
        nothing for what is locked."""
        trained = [
            (output, self._scaled(gradient))
            for output, gradient in zip(outputs, gradients, strict=True)
            if output is not None and gradient is not None and output.requires_grad
        ]
        if trained:
            torch.autograd.backward([o for o, _ in trained], [g for _, g in trained])

    def _measure(
        self, out: LossOutput, asks: tuple[bool, ...]
    ) -> tuple[dict[str, Tensor], list[float], tuple[bool, ...]]:
        """The loss, its metrics and the norm of the gradient before it is clipped, agreed on by all
        ranks in one small reduction (a non-finite value of one rank is non-finite on all); the same
        values on the host; what was asked."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.precision.scaler is not None:
            self.precision.scaler.unscale(trained)
        norm = clip_gradients(trained, self.clip_grad_norm)
        own = {"loss": out.loss, **out.metrics, "grad_norm": norm}
        asked = torch.tensor(asks, dtype=torch.float32).to(self.device, non_blocking=True)
        stacked = torch.stack([value.detach().float() for value in own.values()])
        means = self.average(torch.cat([stacked, asked]))
        # The one wait for the device of a step: the host must know before it updates.
        values = means.tolist()
        metrics = dict(zip(own, means.unbind(), strict=False))
        return metrics, values[: len(own)], tuple(value > 0 for value in values[len(own) :])

    def _update(self) -> dict[str, Tensor]:
        self.optimizer.step()
        before = self.encoder.logit_scale.detach().clone()
        self.encoder.clamp_logit_scale()
        clamped = (self.encoder.logit_scale.detach() != before).float()
        return {"scale": self._scale(), "clamped": clamped}

    def _scale(self) -> Tensor:
        return self.encoder.logit_scale.detach().exp()

    def _judge(self, metrics: dict[str, Tensor]) -> Outcome:
        """A finite loss with a gradient beyond float16's range is the scaler's business, until it
        has no more to give."""
        scaler = self.precision.scaler
        overflow = scaler is not None and scaler.factor >= 1
        return "overflow" if overflow and metrics["loss"].isfinite() else "nonfinite"


def nonfinite_rows(features: Features) -> list[int]:
    bad = ~(features[0].isfinite().all(-1) & features[1].isfinite().all(-1))
    return bad.nonzero()[:, 0].tolist()


def leaf(tensor: Tensor) -> Tensor:
    """The same values, at which a gradient ends."""
    return tensor.detach().requires_grad_()


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of the CPU and of the device, from which dropout draws."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
