"""Training: the config, the parts built from it, and the loop."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from clipx import checkpoints
from clipx.checkpoints import Checkpoint, TrainState
from clipx.config import component, config, to_data, to_yaml
from clipx.data.loader import Batches, DataConfig, Loaded, load
from clipx.data.stream import Corpus
from clipx.data.tokenizers import build_tokenizer
from clipx.distributed.pool import build_pool
from clipx.distributed.runtime import Device, start
from clipx.embed import Encoder
from clipx.engine.evaluate import evaluate_in_training
from clipx.engine.optim import OptimConfig, build_optimizer
from clipx.engine.precision import Precision, compute_dtype
from clipx.engine.progress import Reporter
from clipx.engine.run import RunFolder
from clipx.engine.schedule import cosine
from clipx.engine.step import train_step
from clipx.engine.throughput import Meter
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.model_json import fixed_text_length
from clipx.trackers.tensorboard import TensorBoard
from clipx.types import Duration, Tracker, UserError

_FINGERPRINT_MODULUS = 1 << 63


@config
class TrainConfig:
    """One training run. Durations are strings: `2000 steps`, `3 epochs`, `400M samples`."""

    run_dir: str
    data: DataConfig
    model: ModelConfig
    duration: str
    global_batch_size: int = Field(ge=1)
    """Pairs contrasted with one another in a step, over all ranks."""
    loss: component("clipx.losses") = Field(default="infonce", validate_default=True)  # type: ignore[valid-type]
    optim: OptimConfig = OptimConfig()
    evaluators: dict[str, component("clipx.evaluators")] = Field(default_factory=dict)  # type: ignore[valid-type]
    """By the name of the set, which begins the name of its metrics."""
    seed: int = Field(default=0, ge=0)
    precision: Precision = "auto"
    device: Device = "auto"
    log_every: str = "20 steps"
    checkpoint_every: str = "1000 steps"
    keep_checkpoints: int = Field(default=3, ge=1)
    tensorboard: bool = False


@dataclass(frozen=True)
class Plan:
    """The durations of a config in steps of its corpus."""

    total: int
    warmup: int
    log_every: int
    checkpoint_every: int
    evaluate_every: dict[str, int]

    @classmethod
    def of(cls, config: TrainConfig, epoch_samples: int) -> Plan:
        """Raises UserError with every duration that does not parse."""
        faults: list[str] = []

        def steps(key: str, text: str) -> int:
            try:
                duration = Duration.parse(text)
            except ValueError as error:
                faults.append(f"{key}: {error}")
                return 1
            return duration.steps(global_batch_size=config.global_batch_size, epoch_samples=epoch_samples)

        plan = cls(
            total=steps("duration", config.duration),
            warmup=steps("optim.warmup", config.optim.warmup),
            log_every=steps("log_every", config.log_every),
            checkpoint_every=steps("checkpoint_every", config.checkpoint_every),
            evaluate_every={n: steps(f"evaluators.{n}.every", e.every or config.duration) for n, e in config.evaluators.items()},
        )
        if faults:
            raise UserError("\n".join(faults))
        return plan


def due(step: int, every: int, total: int) -> bool:
    return step % every == 0 or step == total


class Trainer:
    """Everything a run is made of, built once and checked before the first step."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.runtime = start(config.device)
        self.corpus = self._open_together()
        self.plan = Plan.of(config, self.corpus.num_samples)
        self.dtype = compute_dtype(config.precision, self.runtime.device)
        self.model_json = config.model.read()
        torch.manual_seed(config.seed)
        self.encoder = DualEncoder(self.model_json)
        self.loss = config.loss.build()
        self.pool = build_pool(self.runtime.world_size)
        self.folder = self._folder()
        self.state = TrainState(corpus_digest=self.corpus.digest)
        self.model: nn.Module = self.runtime.wrap(self.encoder)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.messages = self._resume()

    def _open_together(self) -> Corpus:
        """The corpus, indexed by rank 0 first, so that the others find the sidecars. Faults stop all ranks."""
        size, ranks = self.config.global_batch_size, self.runtime.world_size
        if size % ranks:
            raise UserError(
                f"global_batch_size {size} is not a multiple of {ranks} ranks; "
                f"the nearest that fits is {max(1, round(size / ranks)) * ranks}"
            )
        corpus: Corpus | None = None
        for turn in (True, False):
            fault = None
            if self.runtime.is_main == turn:
                try:
                    corpus = self.config.data.open(seed=self.config.seed)
                except UserError as error:
                    fault = str(error)
            self.runtime.agree(fault)
        assert corpus is not None
        return corpus

    def _folder(self) -> RunFolder | None:
        folder, fault = None, None
        if self.runtime.is_main:
            try:
                folder = RunFolder(Path(self.config.run_dir), to_data(self.config), to_yaml(self.config))
            except UserError as error:
                fault = str(error)
        self.runtime.agree(fault)
        return folder

    def _resume(self) -> list[str]:
        """Take up the newest valid checkpoint, if there is one. What rank 0 finds valid, all ranks load."""
        found: tuple[Path | None, list[str]] = (None, [])
        if self.folder is not None:
            found = checkpoints.newest_valid(self.folder.checkpoints)
        path, messages = self.runtime.gather(found)[0]
        if path is None:
            return messages
        saved = checkpoints.load(path)
        if saved.state.corpus_digest != self.corpus.digest:
            raise UserError(
                f"the shards of {self.config.data.shards!r} are not those that {path} was trained on: samples were added, "
                "removed or rewritten. Give the old shards, or start a new run_dir= from these"
            )
        self._take_up(saved)
        return [*messages, f"resumed from {path} at step {saved.state.step}"]

    def _take_up(self, saved: Checkpoint) -> None:
        self.encoder.load_state_dict(saved.weights)
        self.optimizer.load_state_dict(saved.optimizer)
        self.state = saved.state
        if self.runtime.rank < len(saved.random):
            torch.set_rng_state(saved.random[self.runtime.rank]["torch"])
            if self.runtime.device.type == "cuda" and saved.random[self.runtime.rank]["cuda"] is not None:
                torch.cuda.set_rng_state(saved.random[self.runtime.rank]["cuda"])

    def batches(self) -> Batches:
        vision, text = self.model_json["vision_cfg"], self.model_json["text_cfg"]
        return Batches(
            self.config.data,
            self.corpus,
            build_tokenizer(text),
            image_size=vision.get("image_size", 224),
            context_length=text.get("context_length", 77),
            pad_to=fixed_text_length(self.model_json),
            global_batch_size=self.config.global_batch_size,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
        )

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
        )
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            position=batch.state["position"],
            fingerprint=(self.state.fingerprint + batch.fingerprint) % _FINGERPRINT_MODULUS,
        )
        return {**metrics, "lr": torch.tensor(rate, device=self.runtime.device)}

    def save(self) -> str | None:
        """Write a checkpoint; what went wrong, if anything did. A full disk must not end a run that may go on."""
        cuda = torch.cuda.get_rng_state() if self.runtime.device.type == "cuda" else None
        random = self.runtime.gather({"torch": torch.get_rng_state(), "cuda": cuda})
        state = replace(self.state, fingerprint=self.runtime.sum_int(self.state.fingerprint))
        # Rank 0 goes on with the sum and the others from 0, as after a resume.
        self.state = replace(self.state, fingerprint=state.fingerprint if self.runtime.is_main else 0)
        if self.folder is None:
            return None
        try:
            checkpoints.save(
                self.folder.checkpoints, state, self.encoder, self.model_json, self.optimizer, random,
                keep=self.config.keep_checkpoints,
            )  # fmt: skip
        except OSError as error:
            return f"checkpoint of step {state.step} not written: {error}; the last good one stays, training goes on"
        return None


def train(config: TrainConfig) -> TrainState:
    """Train until `duration`, from the newest checkpoint of the run folder if it has one. Returns the final state."""
    trainer = Trainer(config)
    runtime, plan = trainer.runtime, trainer.plan
    report = Reporter(total_steps=plan.total, first_step=trainer.state.step, show=runtime.is_main)
    for message in [*trainer.messages, describe(trainer)]:
        report.say(message)
    logs = Logs(trainer) if trainer.folder is not None else None
    meter, bad = Meter(), []
    try:
        for batch in meter.timed(load(trainer.batches(), trainer.state.step, plan.total)):
            metrics = trainer.advance(batch)
            step = trainer.state.step
            bad += batch.bad
            meter.add(config.global_batch_size)
            report.step(step)
            if due(step, plan.log_every, plan.total):
                record = log_record(trainer, metrics, meter)
                everyones_bad = runtime.gather(bad)
                bad = []
                if logs is not None:
                    logs.log(record, [b.record() for rank in everyones_bad for b in rank])
                report.log(record)
            began = time.perf_counter()
            if due(step, plan.checkpoint_every, plan.total) and (fault := trainer.save()):
                report.say(fault)
            if names := [n for n, every in plan.evaluate_every.items() if due(step, every, plan.total)]:
                if logs is not None:
                    logs.results(evaluate_now(trainer, names, report), report)
                runtime.barrier()
            meter.pause(time.perf_counter() - began)
    finally:
        report.close()
        if logs is not None:
            logs.close()
    runtime.close()
    return trainer.state


def log_record(trainer: Trainer, metrics: dict[str, torch.Tensor], meter: Meter) -> dict[str, Any]:
    """One line of metrics.jsonl. All ranks take part."""
    state = trainer.state
    means = trainer.runtime.mean(metrics)
    return {
        "step": state.step,
        "samples_seen": state.position,
        "epoch": round(state.position / trainer.corpus.num_samples, 4),
        **{f"train/{name}": value for name, value in means.items()},
        **meter.read(),
        "fingerprint": f"{trainer.runtime.sum_int(state.fingerprint):016x}",
    }


def evaluate_now(trainer: Trainer, names: list[str], report: Reporter) -> dict[str, Any]:
    encoder = Encoder(trainer.encoder, trainer.model_json, device=trainer.runtime.device, dtype=trainer.dtype)
    chosen = {name: trainer.config.evaluators[name] for name in names}
    results = evaluate_in_training(encoder, chosen, report.say)
    return {"step": trainer.state.step, "samples_seen": trainer.state.position, **results}


class Logs:
    """The files of rank 0."""

    def __init__(self, trainer: Trainer) -> None:
        assert trainer.folder is not None
        step = trainer.state.step
        self._metrics, self._results, self._quarantine = trainer.folder.open_logs(step)
        self._trackers: list[Tracker] = [self._metrics]
        if trainer.config.tensorboard:
            self._trackers.append(TensorBoard(trainer.folder.path / "tensorboard", purge_step=step))

    def log(self, record: dict[str, Any], bad: list[dict[str, Any]]) -> None:
        for tracker in self._trackers:
            tracker.log(record)
        for line in bad:
            self._quarantine.log({"step": record["step"], **line})

    def results(self, record: dict[str, Any], report: Reporter) -> None:
        self._results.log(record)
        for tracker in self._trackers[1:]:
            tracker.log(record)
        shown = [f"{k} {v:.2%}" for k, v in record.items() if k.endswith(("top1", "R@1"))]
        report.say(f"step {record['step']}  " + "  ".join(shown))

    def close(self) -> None:
        for tracker in (*self._trackers, self._results, self._quarantine):
            tracker.close()


def describe(trainer: Trainer) -> str:
    corpus, size = trainer.corpus, trainer.config.global_batch_size
    text = (
        f"{corpus.num_samples:,} pairs in {len(corpus.shards)} shards, {trainer.plan.total:,} steps of {size}, "
        f"{sum(p.numel() for p in trainer.encoder.parameters()) / 1e6:.1f}M parameters, "
        f"{trainer.runtime.world_size} x {trainer.runtime.device}, {str(trainer.dtype).removeprefix('torch.')}"
    )
    if corpus.num_samples < size:
        text += f"\nthe corpus is smaller than a global batch: every batch repeats samples ({corpus.num_samples} < {size})"
    return text


