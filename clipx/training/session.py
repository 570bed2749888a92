"""A run made ready: everything that the loop needs, built once, checked before the first step,
resumed where it stopped."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints.format import Checkpoint, TrainState
from clipx.checkpoints.saver import Saver
from clipx.config import to_data, to_yaml
from clipx.data.loader import Loaded
from clipx.data.tokenizers import build_tokenizer
from clipx.distributed.monitor import Monitor
from clipx.distributed.runtime import job, start
from clipx.losses import sigmoid
from clipx.training.allocator import keep_freed_memory
from clipx.training.build import build_source, build_step, new_encoder
from clipx.training.config import Plan, TrainConfig
from clipx.training.corpus import describe, open_together, write_table
from clipx.training.ema import Ema
from clipx.training.errors import judged
from clipx.training.interruption import Stop, leave_if_signaled
from clipx.training.precision import build_precision
from clipx.training.resume import newest
from clipx.training.run_folder import CORPUS, RunFolder, open_by_main
from clipx.training.run_status import State
from clipx.training.schedule import rate
from clipx.training.skipped_steps import counted, line, memory_gib, report_nonfinite
from clipx.training.state import Parts, split_fingerprint
from clipx.training.validation import check, check_plan, with_defaults
from clipx.types import Stopped

_FINGERPRINT_MODULUS = 1 << 63


class Asked(NamedTuple):
    """What any rank asked for with the last step; all ranks see the same."""

    stop: bool = False
    save: bool = False


class Session:
    """The parts of a run on this rank. `folder` is None on all ranks but the first."""

    def __init__(self, config: TrainConfig, stop: Stop | None = None) -> None:
        """Raises Stopped where any rank is asked to stop meanwhile.

        stop: of this rank, which gets the deadline of the run
        """
        self.config, self.began = config, time.time()
        self.stop = stop or Stop()
        self.runtime = start(config.device, timeout_minutes=config.timeout_minutes)
        if self.runtime.device.type == "cpu":
            keep_freed_memory()
        self.monitor = Monitor(self.runtime, timeout_seconds=60 * config.timeout_minutes)
        self.folder: RunFolder | None = None
        try:
            self._open()
            self._build()
        except BaseException as error:  # noqa: BLE001  raised below
            final = judged(error, config, self.runtime, self.monitor)
            self.monitor.close()
            if self.folder is not None and isinstance(final, Stopped):
                self.folder.close("stopped", str(final))
            elif self.folder is not None:
                self.folder.close("failed", f"{type(final).__name__}: {final}")
            raise final from (None if final is error else error)

    def _open(self) -> None:
        """All that can be refused, before anything is written."""
        config = self.config
        self.corpus = open_together(config, self.runtime)
        self.plan = Plan.of(config, self.corpus.num_samples)
        self.stop.deadline = self.plan.deadline(job(), self.began)
        warnings = check_plan(config, self.plan, self.runtime)
        self.precision = build_precision(config.precision, self.runtime.device)
        self.model_json = with_defaults(
            config.model.read(), sigmoid=isinstance(config.loss, sigmoid.Config)
        )
        self.encoder, messages = new_encoder(
            config.model, self.model_json, self.runtime, seed=config.seed
        )
        self.messages = warnings + messages
        check(config, self.encoder, world_size=self.runtime.world_size)
        leave_if_signaled(self.runtime, self.stop)
        self.folder = open_by_main(
            self.runtime,
            Path(config.run_dir),
            to_data(config),
            to_yaml(config),
            total_steps=self.plan.total,
            may_change=CORPUS if config.data.accept_changed_corpus else (),
        )

    def _build(self) -> None:
        config = self.config
        self.state = TrainState(corpus_digest=self.corpus.digest)
        self.asked, resumed_at = Asked(), None
        self.source, trained, normalize = build_source(
            config,
            self.runtime,
            self.stop,
            self.corpus,
            self.encoder,
            self.model_json,
            self.precision.dtype,
        )
        self.step = build_step(
            config,
            self.runtime,
            trained,
            self.precision,
            pad_id=build_tokenizer(self.model_json["text_cfg"]).pad_id,
            normalize=normalize,
            mark=lambda phase: self.monitor.at(self.state.step + 1, phase),
        )
        ema = Ema(self.encoder, config.ema) if config.ema is not None else None
        self.parts = Parts(self.runtime, self.encoder, self.step, ema)
        self.clamped = torch.zeros((), device=self.runtime.device)
        torch.manual_seed(config.seed + self.runtime.rank)  # ranks drop out different units
        saved, messages = newest(
            self.runtime,
            self.folder,
            self.corpus,
            self.parts,
            accept=config.data.accept_changed_corpus,
        )
        if saved is not None:
            self._take_up(saved)
            resumed_at = saved.state.step
        self.messages += messages
        self.saver = self._saver(resumed_at)
        if self.folder is not None:
            self.folder.status.update(**self._progress())
            write_table(self.folder.path, self.corpus.table())
            self.messages += self.folder.messages
        leave_if_signaled(self.runtime, self.stop)

    def _saver(self, newest: int | None) -> Saver:
        config, folder = self.config, self.folder
        about = checkpoints.About(
            self.model_json,
            keep=config.keep_checkpoints,
            keep_every=self.plan.keep_every,
            texts=folder.about() if folder else {},
        )
        return Saver(
            self.runtime,
            self.parts,
            folder.checkpoints if folder else None,
            about,
            newest=newest,
            every_seconds=self.plan.checkpoint_seconds,
            asynchronous=config.save_async,
        )

    def _take_up(self, saved: Checkpoint) -> None:
        self.parts.take_up(saved)
        self.clamped.fill_(saved.state.clamped_steps)
        state = replace(saved.state, corpus_digest=self.corpus.digest)
        self.state = split_fingerprint(state, self.runtime)

    def advance(self, batch: Loaded, *, stop: bool = False) -> dict[str, Tensor]:
        """One optimizer step; `state` counts it once it is done, and `asked` says what any rank
        wants then. Raises UserError after too many steps that could not be done.

        stop: this rank wants the run to end
        """
        plan, optim = self.plan, self.config.optim
        share = rate(optim.schedule, self.state.step, plan.total, plan.warmup, plan.cooldown)
        for group in self.step.optimizer.param_groups:
            group["lr"] = optim.lr * share * group["lr_scale"]
        stepped = self.step(batch, stop, self.saver.wants())
        self.asked = Asked(*stepped.asked)
        state = replace(
            self.state,
            step=self.state.step + 1,
            position=batch.state["position"],
            fingerprint=(self.state.fingerprint + batch.fingerprint) % _FINGERPRINT_MODULUS,
        )
        self.state = counted(state, stepped.outcome)
        self.clamped += stepped.metrics["clamped"]
        if stepped.outcome == "updated" and self.parts.ema is not None:
            self.parts.ema.update()
        if stepped.outcome == "nonfinite":
            limit, run_dir = self.config.max_nonfinite_steps, Path(self.config.run_dir)
            report_nonfinite(self.runtime, run_dir, self.state, batch, stepped, limit)
        return {**stepped.metrics, "lr": torch.tensor(optim.lr * share)}

    def health(self) -> dict[str, Any]:
        """For a log line; what is counted from line to line starts afresh. All ranks take part."""
        memory = max(self.runtime.gather(memory_gib(self.runtime.device)))
        found = line(self.state, self.clamped.item(), memory)
        self.clamped.zero_()
        return found

    def save(self, *, wait: bool) -> str | None:
        """Write a checkpoint; see Saver.save."""
        runtime = self.runtime
        state = replace(
            self.state,
            fingerprint=runtime.sum_int(self.state.fingerprint),
            clamped_steps=int(self.clamped),
        )
        self.state = split_fingerprint(state, runtime)
        return self.saver.save(state, wait=wait)

    def tell(self, record: dict[str, Any]) -> None:
        """Those who watch from outside get what a log line has."""
        if self.folder is not None:
            self.folder.status.update(
                step=self.state.step,
                samples_seen=self.state.position,
                loss=record["train/loss"],
                samples_per_second=record["train/samples_per_second"],
                checkpoint=self.saver.newest,
            )

    def close(self, state: State, reason: str | None) -> None:
        """The folder is free for the next. A checkpoint that is being written is waited for."""
        self.saver.close()
        self.monitor.close()
        if self.folder is not None:
            self.folder.status.update(**self._progress())
            self.folder.close(state, reason)

    def _progress(self) -> dict[str, int | None]:
        """For status.json, on rank 0."""
        at = self.state
        return {"step": at.step, "samples_seen": at.position, "checkpoint": self.saver.newest}

    def describe(self) -> str:
        corpus, size = self.corpus, self.config.global_batch_size
        text = (
            f"{corpus.num_samples:,} pairs in {corpus.num_shards} shards, "
            f"{self.plan.total:,} steps of {size}, "
            f"{sum(p.numel() for p in self.encoder.parameters()) / 1e6:.1f}M parameters, "
            f"{self.runtime.world_size} x {self.runtime.device.type}{self.step.model.title}, "
            f"{str(self.precision.dtype).removeprefix('torch.')}"
        )
        return "\n".join([text, *describe(corpus, size)])
