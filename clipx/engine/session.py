"""A run made ready: everything that the loop needs, built once, checked before the first step,
resumed where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipx import checkpoints
from clipx.checkpoints import Checkpoint, TrainState
from clipx.config import to_data, to_yaml
from clipx.data.loader import Loaded, Source
from clipx.data.tokenizers import build_tokenizer
from clipx.data.transforms import Normalization
from clipx.distributed.pool import build_pool
from clipx.distributed.runtime import start
from clipx.distributed.wrap import wrap
from clipx.engine.compiling import compile_towers
from clipx.engine.config import Plan, TrainConfig
from clipx.engine.corpus import (
    describe,
    open_together,
    pixel_batches,
    write_table,
)
from clipx.engine.door import check, with_defaults
from clipx.engine.ema import Ema
from clipx.engine.features import feature_batches
from clipx.engine.health import counted, line, memory_gib, report_nonfinite
from clipx.engine.optim import build_optimizer
from clipx.engine.precision import build_precision
from clipx.engine.resume import newest
from clipx.engine.run import CORPUS, RunFolder
from clipx.engine.saving import Saver
from clipx.engine.schedule import rate
from clipx.engine.state import Parts, split_fingerprint
from clipx.engine.status import State
from clipx.engine.step import Step
from clipx.losses import sigmoid
from clipx.models.dual_encoder import DualEncoder
from clipx.models.locked import split_locked
from clipx.types import UserError

_FINGERPRINT_MODULUS = 1 << 63


class Asked(NamedTuple):
    """What any rank asked for with the last step; all ranks see the same."""

    stop: bool = False
    save: bool = False


class Session:
    """The parts of a run on this rank. `folder` is None on all ranks but the first."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.runtime = start(config.device, timeout_minutes=config.timeout_minutes)
        self.corpus = open_together(config, self.runtime)
        self.plan = Plan.of(config, self.corpus.num_samples)
        self.precision = build_precision(config.precision, self.runtime.device)
        self.model_json = with_defaults(
            config.model.read(), sigmoid=isinstance(config.loss, sigmoid.Config)
        )
        torch.manual_seed(config.seed)
        self.encoder = self._new_encoder()
        check(config, self.encoder, world_size=self.runtime.world_size)
        self.folder = self._folder()
        try:
            self._build()
        except BaseException as error:
            if self.folder is not None:
                self.folder.close("failed", f"{type(error).__name__}: {error}")
            raise

    def _build(self) -> None:
        config = self.config
        self.state = TrainState(corpus_digest=self.corpus.digest)
        self.asked, resumed_at = Asked(), None
        source, trained, normalize = self._source()
        self.source = source
        self.step = self._step(trained, normalize)
        ema = Ema(self.encoder, config.ema) if config.ema is not None else None
        self.parts = Parts(self.runtime, self.encoder, self.step, ema)
        self.clamped = torch.zeros((), device=self.runtime.device)
        torch.manual_seed(config.seed + self.runtime.rank)  # ranks drop out different units
        saved, messages = newest(
            self.runtime, self.folder, self.corpus, accept=config.data.accept_changed_corpus
        )
        if saved is not None:
            self._take_up(saved)
            resumed_at = saved.state.step
        self.messages += messages
        self.saver = self._saver(resumed_at)
        if self.folder is not None:
            at = self.state
            found = {"step": at.step, "samples_seen": at.position, "checkpoint": self.saver.newest}
            self.folder.status.update(**found)
            write_table(self.folder.path, self.corpus.table())
            self.messages += self.folder.messages

    def _step(self, trained: DualEncoder, normalize: Callable[[Tensor], Tensor]) -> Step:
        """trained: the part of the model that a step runs: all of it, or its heads"""
        config, runtime = self.config, self.runtime
        if config.grad_checkpointing:
            trained.set_grad_checkpointing(True)
        if config.compile == "towers":
            compile_towers(trained)
        model = wrap(
            trained, trained, runtime, parallel=config.parallel, dtype=self.precision.dtype
        )
        return Step(
            model=model,
            encoder=trained,
            optimizer=build_optimizer(trained, config.optim),  # of the shards, where there are any
            loss=config.loss.build(),
            pool=build_pool(config.pool, world_size=runtime.world_size),
            precision=self.precision,
            device=runtime.device,
            clip_grad_norm=config.optim.clip_grad_norm,
            micro_batch_size=config.micro_batch_size,
            seed=config.seed,
            pad_id=build_tokenizer(self.model_json["text_cfg"]).pad_id,
            normalize=normalize,
            average=runtime.average,
        )

    def _new_encoder(self) -> DualEncoder:
        """The model as it is before the first step."""
        model = self.config.model
        initial = model.build_initial()
        if initial is not None:
            self.runtime.main_first(initial.prepare)
        encoder = DualEncoder(self.model_json)
        self.messages = [] if initial is None else initial.load(encoder)
        encoder.lock(model.locked, model.unlocked_groups)
        return encoder

    def _source(self) -> tuple[Source, DualEncoder, Callable[[Tensor], Tensor]]:
        """(batches, the model that takes them, what is done to their images on the device)"""
        if self.config.cache_features is None:
            share = {"rank": self.runtime.rank, "world_size": self.runtime.world_size}
            batches = pixel_batches(self.config, self.corpus, self.model_json, **share)
            return batches, self.encoder, Normalization.of(self.model_json)
        split = split_locked(self.encoder, self.model_json)
        batches = feature_batches(
            self.config, self.runtime, self.corpus, split, self.model_json, self.precision.dtype
        )
        return batches, split.heads, lambda features: features

    def _folder(self) -> RunFolder | None:
        folder, fault = None, None
        if self.runtime.is_main:
            try:
                folder = RunFolder(
                    Path(self.config.run_dir),
                    to_data(self.config),
                    to_yaml(self.config),
                    total_steps=self.plan.total,
                    may_change=CORPUS if self.config.data.accept_changed_corpus else (),
                )
            except UserError as error:
                fault = str(error)
        self.runtime.agree(fault)
        return folder

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
        """For a log line; what is counted from line to line starts afresh."""
        found = line(self.state, self.clamped.item(), memory_gib(self.runtime.device))
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
        if self.folder is not None:
            at = self.state
            found = {"step": at.step, "samples_seen": at.position, "checkpoint": self.saver.newest}
            self.folder.status.update(**found)
            self.folder.close(state, reason)

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
