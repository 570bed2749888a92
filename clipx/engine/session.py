"""A run made ready: everything that the loop needs, built once, checked before the first step,
resumed where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from clipx import checkpoints
from clipx.checkpoints import Checkpoint, TrainState
from clipx.config import to_data, to_yaml
from clipx.data.loader import Loaded, Source
from clipx.data.transforms import Normalization
from clipx.distributed.pool import PoolConfig, build_pool
from clipx.distributed.runtime import start
from clipx.engine.config import Plan, TrainConfig
from clipx.engine.corpus import (
    changes,
    describe,
    open_together,
    pixel_batches,
    write_table,
)
from clipx.engine.features import feature_batches
from clipx.engine.optim import build_optimizer
from clipx.engine.precision import compute_dtype
from clipx.engine.run import CORPUS, RunFolder
from clipx.engine.schedule import cosine
from clipx.engine.step import train_step
from clipx.models.dual_encoder import DualEncoder
from clipx.models.locked import split_locked
from clipx.types import UserError

_FINGERPRINT_MODULUS = 1 << 63
T = TypeVar("T")


class Session:
    """The parts of a run on this rank. `folder` is None on all ranks but the first."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.runtime = start(config.device)
        self.corpus = open_together(config, self.runtime)
        self.plan = Plan.of(config, self.corpus.num_samples)
        self.dtype = compute_dtype(config.precision, self.runtime.device)
        self.model_json = config.model.read()
        torch.manual_seed(config.seed)
        self.encoder = self._new_encoder()
        self.loss = config.loss.build()
        self.pool = build_pool(PoolConfig(), world_size=self.runtime.world_size)
        self.folder = self._folder()
        self.state = TrainState(corpus_digest=self.corpus.digest)
        self.source, trained, self.normalize = self._source()
        self.model: nn.Module = self.runtime.wrap(trained)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.messages = self._resume()
        if self.folder is not None:
            write_table(self.folder.path, self.corpus.table())

    def _main_first(self, act: Callable[[], T]) -> T:
        """What `act` returns, done by rank 0 first, so that the others find the files that it
        leaves. Faults stop all ranks."""
        done: list[T] = []
        for turn in (True, False):
            fault = None
            if self.runtime.is_main == turn:
                try:
                    done.append(act())
                except UserError as error:
                    fault = str(error)
            self.runtime.agree(fault)
        return done[0]

    def _new_encoder(self) -> DualEncoder:
        """The model as it is before the first step."""
        model = self.config.model
        initial = model.initial.build() if model.initial else None
        if initial is not None:
            self._main_first(initial.prepare)
        encoder = DualEncoder(self.model_json)
        if initial is not None:
            initial.load(encoder)
        encoder.lock(model.locked)
        return encoder

    def _source(self) -> tuple[Source, DualEncoder, Callable[[Tensor], Tensor]]:
        """(batches, the model that takes them, what is done to their images on the device)"""
        if self.config.cache_features is None:
            share = {"rank": self.runtime.rank, "world_size": self.runtime.world_size}
            batches = pixel_batches(self.config, self.corpus, self.model_json, **share)
            return batches, self.encoder, Normalization.of(self.model_json)
        split = split_locked(self.encoder, self.model_json)
        batches = feature_batches(
            self.config, self.runtime, self.corpus, split, self.model_json, self.dtype
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
                    may_change=CORPUS if self.config.data.accept_changed_corpus else (),
                )
            except UserError as error:
                fault = str(error)
        self.runtime.agree(fault)
        return folder

    def _resume(self) -> list[str]:
        """Take up the newest valid checkpoint, if there is one. What rank 0 finds valid, all ranks
        load."""
        found: tuple[Path | None, list[str]] = (None, [])
        if self.folder is not None:
            found = checkpoints.newest_valid(self.folder.checkpoints)
        path, messages = self.runtime.gather(found)[0]
        if path is None:
            return messages
        saved = checkpoints.load(path)
        if saved.state.corpus_digest != self.corpus.digest:
            messages.append(self._changed_corpus(path))
        self._take_up(saved)
        return [*messages, f"resumed from {path} at step {saved.state.step}"]

    def _changed_corpus(self, path: Path) -> str:
        """What differs from the corpus that the checkpoint was trained on. Raises UserError unless
        the user accepts it."""
        mine = changes(self.folder.path, self.corpus.table()) if self.folder is not None else ""
        told = self.runtime.from_main(mine)
        text = f"the corpus is not the one that {path} was trained on: {told}"
        if not self.config.data.accept_changed_corpus:
            raise UserError(
                f"{text}. Give the old shards, start a new run_dir=, or go on with these by "
                "data.accept_changed_corpus=true"
            )
        return f"{text}. Going on: in this epoch some samples come twice or not at all"

    def _take_up(self, saved: Checkpoint) -> None:
        self.encoder.load_state_dict(saved.weights)
        self.optimizer.load_state_dict(saved.optimizer)
        # Rank 0 carries the sum of all ranks' fingerprints.
        mine = saved.state.fingerprint if self.runtime.is_main else 0
        self.state = replace(saved.state, fingerprint=mine, corpus_digest=self.corpus.digest)
        if self.runtime.rank < len(saved.random):
            torch.set_rng_state(saved.random[self.runtime.rank]["torch"])
            if (
                self.runtime.device.type == "cuda"
                and saved.random[self.runtime.rank]["cuda"] is not None
            ):
                torch.cuda.set_rng_state(saved.random[self.runtime.rank]["cuda"])

    def advance(self, batch: Loaded) -> dict[str, torch.Tensor]:
        """One optimizer step; `state` counts it once it is done."""
        rate = self.config.optim.lr * cosine(self.state.step, self.plan.total, self.plan.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        metrics = train_step(
            self.model,
            self.optimizer,
            self.loss,
            self.pool,
            batch,
            device=self.runtime.device,
            dtype=self.dtype,
            clip_grad_norm=self.config.optim.clip_grad_norm,
            normalize=self.normalize,
        )
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            position=batch.state["position"],
            fingerprint=(self.state.fingerprint + batch.fingerprint) % _FINGERPRINT_MODULUS,
        )
        return {**metrics, "lr": torch.tensor(rate, device=self.runtime.device)}

    def save(self) -> str | None:
        """Write a checkpoint. Returns, on all ranks, what went wrong, or None.

        A full disk is no reason to end a run that may go on.
        """
        runtime = self.runtime
        cuda = torch.cuda.get_rng_state() if runtime.device.type == "cuda" else None
        random = runtime.gather({"torch": torch.get_rng_state(), "cuda": cuda})
        state = replace(self.state, fingerprint=runtime.sum_int(self.state.fingerprint))
        # Rank 0 goes on with the sum and the others from 0, as after a resume.
        self.state = replace(state, fingerprint=state.fingerprint if runtime.is_main else 0)
        fault: str | None = None
        if self.folder is not None:
            try:
                checkpoints.save(
                    self.folder.checkpoints,
                    state,
                    self.encoder,
                    self.model_json,
                    self.optimizer,
                    random,
                    keep=self.config.keep_checkpoints,
                )
            except OSError as error:
                fault = f"checkpoint of step {state.step} not written: {error}"
        return runtime.gather(fault)[0]

    def describe(self) -> str:
        corpus, size = self.corpus, self.config.global_batch_size
        text = (
            f"{corpus.num_samples:,} pairs in {corpus.num_shards} shards, "
            f"{self.plan.total:,} steps of {size}, "
            f"{sum(p.numel() for p in self.encoder.parameters()) / 1e6:.1f}M parameters, "
            f"{self.runtime.world_size} x {self.runtime.device}, "
            f"{str(self.dtype).removeprefix('torch.')}"
        )
        return "\n".join([text, *describe(corpus, size)])
