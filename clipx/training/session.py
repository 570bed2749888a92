"""A run that is ready to train: checked before its first step, built once, resumed where it
stopped."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.checkpoints.train_state import TrainState
from clipx.config import to_data, to_yaml
from clipx.data.loader import Loaded
from clipx.distributed.monitor import Monitor
from clipx.distributed.pool import build_pool
from clipx.distributed.runtime import job, keep_freed_memory, start
from clipx.evaluators.sample_source import with_held_out
from clipx.objectives.objective import Features
from clipx.training.build import build_learner, build_saver, build_source, new_encoder
from clipx.training.changeable import CORPUS_SETTINGS
from clipx.training.collapse import spread
from clipx.training.config import RunPlan, TrainConfig
from clipx.training.corpus import open_together, write_table
from clipx.training.errors import explain
from clipx.training.interruption import Stop, raise_if_signaled
from clipx.training.precision import build_precision
from clipx.training.resume import load_newest
from clipx.training.run_folder import RunFolder
from clipx.training.run_status import State
from clipx.training.schedule import rate
from clipx.training.skipped_steps import count_outcome, memory_gib, report_nonfinite
from clipx.training.step import Step
from clipx.training.validation import check, check_plan, with_defaults
from clipx.types import Stopped


class Session:
    """A run on this rank.

    folder: None on all ranks but the first
    evaluators: configs by name, with the held-out part of the open corpus
    state: the step, the data position and counters after the last step
    stop_requested, save_requested: whether any rank requested it with the last step; the same on
        all ranks
    messages: for the log, before the first step
    """

    def __init__(self, config: TrainConfig, stop: Stop | None = None) -> None:
        """stop: of this rank; it gets the deadline of the run. Raises Stopped on all ranks if any
        has had a signal."""
        self.config = config
        self.start_time = time.time()
        self.stop = stop or Stop()
        self.runtime = start(config.device, timeout_minutes=config.timeout_minutes)
        if self.runtime.device.type == "cpu":  # GPUs have torch's own allocator
            keep_freed_memory()
        self.monitor = Monitor(self.runtime, timeout_seconds=60 * config.timeout_minutes)
        self.folder: RunFolder | None = None
        self.stop_requested = False
        self.save_requested = False
        try:
            self._open()
            self._build()
            self._resume()
        except BaseException as error:  # noqa: BLE001  raised below
            explained = explain(error, config, self.runtime, self.monitor)
            self.monitor.close()
            if self.folder is not None and isinstance(explained, Stopped):
                self.folder.close("stopped", str(explained))
            elif self.folder is not None:
                self.folder.close("failed", f"{type(explained).__name__}: {explained}")
            raise explained from (None if explained is error else error)

    def _open(self) -> None:
        """Check everything that can be wrong, before anything is written."""
        config = self.config
        # The corpus first: durations in epochs depend on its size.
        self.corpus = open_together(config, self.runtime)
        self.plan = RunPlan.of(config, self.corpus.num_samples)
        self.stop.deadline = self.plan.deadline(job(), self.start_time)
        # On the corpus that is open: opening it again would hash all of its samples again.
        self.evaluators = with_held_out(config.evaluators, config.data, self.corpus.sources)
        warnings = check_plan(config, self.evaluators, self.plan, self.runtime)
        self.precision = build_precision(config.precision, self.runtime.device)
        self.model_json = with_defaults(config.model.read(), config.loss.build())
        self.encoder, messages = new_encoder(
            config.model, self.model_json, self.runtime, seed=config.seed
        )
        self.messages = [*warnings, *messages]
        # After the model is built, since it may have batch norms or parts that cannot be locked.
        sizes = {"world_size": self.runtime.world_size, "num_samples": self.corpus.num_samples}
        check(config, self.encoder, **sizes)
        raise_if_signaled(self.runtime, self.stop)
        open_folder = partial(
            RunFolder,
            Path(config.run_dir),
            to_data(config),
            to_yaml(config),
            total_steps=self.plan.total,
            may_change=CORPUS_SETTINGS if config.data.accept_changed_corpus else (),
            how={
                "processes": self.runtime.world_size,
                "precision": str(self.precision.dtype).removeprefix("torch."),
            },
        )
        self.folder = self.runtime.on_main(open_folder)

    def _build(self) -> None:
        config = self.config
        self.state = TrainState(corpus_digest=self.corpus.digest)
        self.source, trained, normalize = build_source(
            config,
            self.runtime,
            self.stop,
            self.corpus,
            self.encoder,
            self.model_json,
            self.precision.dtype,
        )
        self.learner = build_learner(
            config,
            self.runtime,
            self.encoder,
            trained,
            self.precision,
            model_json=self.model_json,
            num_samples=self.corpus.num_samples,
            normalize=normalize,
        )
        self.step = Step(
            self.learner,
            build_pool(config.pool, world_size=self.runtime.world_size),
            clip_grad_norm=config.optim.clip_grad_norm,
            micro_batch_size=config.micro_batch_size,
            average=self.runtime.average,
            mark=lambda phase: self.monitor.at(self.state.step + 1, phase),
        )
        self.features: Features = {}  # of the last step
        # On the device, so that counting does not wait for it.
        self.clamped_steps = torch.zeros((), device=self.runtime.device)
        torch.manual_seed(config.seed + self.runtime.rank)  # ranks drop out different units

    def _resume(self) -> None:
        saved, messages = load_newest(
            self.runtime,
            self.folder,
            self.corpus,
            self.learner,
            accept_changed_corpus=self.config.data.accept_changed_corpus,
        )
        if saved is not None:
            self.clamped_steps.fill_(saved.state.clamped_steps)
            state = replace(saved.state, corpus_digest=self.corpus.digest)  # it may have changed
            self.state = state.on_rank(is_main=self.runtime.is_main)
        self.messages += messages
        newest = None if saved is None else saved.state.step
        self.saver = build_saver(
            self.config, self.plan, self.learner, self.folder, self.model_json, newest=newest
        )
        if self.folder is not None:
            self.folder.status.update(**self.progress())
            # Not before: a start that is refused compares with the table of the last one.
            write_table(self.folder.path, self.corpus.table())
            self.messages += self.folder.messages
        raise_if_signaled(self.runtime, self.stop)

    def advance(self, batch: Loaded, *, stop: bool = False) -> dict[str, Tensor]:
        """Take one optimizer step. Returns its metrics. Raises UserError after too many steps in a
        row that could not be taken.

        stop: this rank requests that the run ends
        """
        config = self.config
        plan = self.plan
        schedule = config.optim.schedule
        share = rate(schedule, self.state.step, plan.total, plan.warmup, plan.cooldown)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = config.optim.lr * share * group["lr_scale"]

        result = self.step(batch, stop, self.saver.is_due())
        # Equal on all ranks, so that all stop or save after the same step.
        self.stop_requested, self.save_requested = result.requests
        state = replace(
            self.state,
            step=self.state.step + 1,
            position=batch.state["position"],
            fingerprint=(self.state.fingerprint + batch.fingerprint) % (1 << 63),
        )
        self.state = count_outcome(state, result.outcome)
        metrics = dict(result.metrics)
        self.clamped_steps += metrics.pop("clamped", 0)
        self.features = result.features
        if result.outcome == "updated" and self.learner.ema is not None:
            self.learner.ema.update()
        if result.outcome == "nonfinite":
            report_nonfinite(
                self.runtime,
                Path(config.run_dir),
                self.state,
                batch,
                result,
                limit=config.max_nonfinite_steps,
            )
        return {**metrics, "lr": torch.tensor(config.optim.lr * share)}

    def health(self) -> dict[str, Any]:
        """Counts, memory and the spread of features for a log line. All ranks take part."""
        gather = self.step.pool.gather
        positives = self.learner.objective.positives
        record = {
            **spread(self.features, positives, gather, self.runtime.world_size),
            "train/clamped_steps": int(self.clamped_steps.item()),
            "skipped_steps": self.state.skipped_steps,
            "overflowed_steps": self.state.overflowed_steps,
            "memory_gib": round(max(self.runtime.gather(memory_gib(self.runtime.device))), 3),
        }
        self.clamped_steps.zero_()  # counted from one log line to the next
        return record

    def save(self, *, wait: bool) -> str | None:
        """Write a checkpoint; see `Saver.save`."""
        # Each rank counts its own samples, and the sum goes into the checkpoint. Rank 0 continues
        # with the sum and the others with 0, so that nothing is counted twice.
        state = replace(
            self.state,
            fingerprint=self.runtime.sum_int(self.state.fingerprint),
            clamped_steps=int(self.clamped_steps),
        )
        self.state = state.on_rank(is_main=self.runtime.is_main)
        return self.saver.save(state, wait=wait)

    def close(self, state: State, reason: str | None) -> None:
        """Release the folder. Waits for a checkpoint that is being written."""
        self.saver.close()
        self.monitor.close()
        if self.folder is not None:
            self.folder.status.update(**self.progress())
            self.folder.close(state, reason)

    def progress(self) -> dict[str, int | None]:
        """For status.json, on rank 0."""
        return {
            "step": self.state.step,
            "samples_seen": self.state.position,
            "checkpoint": self.saver.newest,
        }
