"""The config of a training run, and its durations in steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from clipx.config import component, config
from clipx.data.config import DataConfig
from clipx.distributed.pool import PoolConfig
from clipx.distributed.runtime import Device, Job
from clipx.distributed.wrap import Parallel
from clipx.durations import Duration, DurationText, IntervalText, TimeText, parse_seconds
from clipx.models.dual_encoder import ModelConfig
from clipx.training.optim import OptimConfig
from clipx.types import PrecisionKind, UserError

CompileKind = Literal["none", "towers"]


@config
class TrainConfig:
    """One training run. Durations are strings: `2000 steps`, `3 epochs`, `400M samples`."""

    run_dir: str
    """Folder of the run. One that has checkpoints is continued."""
    data: DataConfig
    model: ModelConfig
    duration: DurationText
    """Length of the run, from its first start."""
    global_batch_size: int = Field(ge=1, le=2**31)
    """Pairs contrasted with one another in a step, over all ranks."""
    objective: component("clipx.objectives") = Field(default="image_text", validate_default=True)  # type: ignore[valid-type]
    """What is contrasted: `image_text`, views of each image (`two_view`), or both (`slip`)."""
    loss: component("clipx.losses") = Field(default="infonce", validate_default=True)  # type: ignore[valid-type]
    """Of image-text pairs."""
    pool: PoolConfig = PoolConfig()
    optim: OptimConfig = OptimConfig()
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Local rows that are embedded at a time, if the activations of all of them do not fit in
    memory: the same gradient for a third more compute (arXiv:2101.06983); null: all at once."""
    grad_checkpointing: bool = False
    """Keep the inputs of blocks instead of their activations, and compute these again in backward,
    also for a third more compute. Try it before micro-batches: it needs no second pass."""
    parallel: Parallel = "auto"
    """ddp: a copy of the model on every rank. fsdp2: weights, gradients, optimizer state and
    averages sharded over the ranks. auto: fsdp2 if `accelerate launch` was configured for it."""
    compile: CompileKind = "none"
    """towers: torch.compile for both. It pays on GPUs, in runs that are much longer than the
    minutes it takes; on CPUs it bypasses the packing of captions. With data.text_multiple=8 the
    matmuls of the text tower have shapes that GPUs compute fastest."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, e.g. 0.9999, which evaluations and `load_model`
    then use; null: none."""
    max_nonfinite_steps: int = Field(default=10, ge=1)
    """Skipped steps in a row, without a finite loss and gradient, after which a run stops."""
    evaluators: dict[str, component("clipx.evaluators")] = Field(default_factory=dict)  # type: ignore[valid-type]
    """By the name of the set, with which the names of its metrics begin."""
    evaluate_at_start: bool = False
    """Run all evaluators before the first step too, to compare with the initial weights."""
    cache_features: str | None = None
    """Folder for the features of locked trunks, which are computed once and trained on instead of
    the images; about 2 bytes x (image width x samples + text width x distinct captions)."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights, the order of the data, and all random draws."""
    precision: PrecisionKind = "auto"
    """Dtype of matrix products. auto: bfloat16 where the hardware has it, else float32. Weights,
    features and the loss are float32 in any case."""
    device: Device = "auto"
    """auto: a GPU for each process if it can have one, else the CPU."""
    log_every: DurationText = "20 steps"
    """Interval of the lines of metrics.jsonl."""
    checkpoint_every: IntervalText = "1000 steps"
    """Or a time, `15 minutes`, by the clock of rank 0. There is always a checkpoint before an
    evaluation."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """The newest ones."""
    keep_every: DurationText | None = None
    """Interval of checkpoints that are never removed, such as `10000 steps`, a multiple of
    checkpoint_every; null: none."""
    save_async: bool = True
    """Copy the tensors of a checkpoint and write them during the next steps. It takes host memory:
    three times the weights with AdamW, four times with `ema`."""
    stop_after: TimeText | None = None
    """Time after which the run stops with a checkpoint, `23h30m` or seconds; null: only before the
    end of its SLURM job."""
    stop_margin: TimeText = "2 minutes"
    """Time before the end of a SLURM job at which the run stops: enough for a step and a save."""
    timeout_minutes: float = Field(default=30.0, gt=0, le=525_600)
    """Time that ranks wait for one another before they give up and name the one that hangs. The
    slowest rank of an evaluation must take less."""
    tensorboard: bool = False
    """Write event files beside the logs; needs the extra `track`."""


@dataclass(frozen=True)
class RunPlan:
    """The durations of a config in steps of its corpus."""

    total: int
    warmup: int
    cooldown: int
    log_every: int
    checkpoint_every: int | None
    checkpoint_seconds: float | None
    keep_every: int | None
    stop_after: float | None
    stop_margin: float
    evaluate_every: dict[str, int]
    evaluate_at_start: bool

    @classmethod
    def of(cls, config: TrainConfig, epoch_samples: int) -> RunPlan:
        """Raises UserError for the interval of an evaluator outside clipx that does not parse."""

        def steps(text: str) -> int:
            return Duration.parse(text).steps(
                global_batch_size=config.global_batch_size, epoch_samples=epoch_samples
            )

        total = steps(config.duration)
        cooldown = config.optim.schedule.cooldown
        keep = config.keep_every
        after = config.stop_after
        checkpoint_every: int | None = None
        checkpoint_seconds: float | None = None
        try:
            checkpoint_seconds = parse_seconds(config.checkpoint_every)
        except ValueError:  # not a time, so steps, epochs or samples
            checkpoint_every = steps(config.checkpoint_every)
        evaluate_every = {}
        for name, evaluator in config.evaluators.items():
            interval = evaluator.every or config.duration  # null: only at the end
            try:
                evaluate_every[name] = steps(interval)
            except ValueError as error:
                raise UserError(f"evaluators.{name}.every: {error}") from error
        return cls(
            total=total,
            warmup=steps(config.optim.warmup),
            cooldown=steps(cooldown) if cooldown else total // 5,
            log_every=steps(config.log_every),
            checkpoint_every=checkpoint_every,
            checkpoint_seconds=checkpoint_seconds,
            keep_every=steps(keep) if keep else None,
            stop_after=parse_seconds(after) if after else None,
            stop_margin=parse_seconds(config.stop_margin),
            evaluate_every=evaluate_every,
            evaluate_at_start=config.evaluate_at_start,
        )

    def evaluations_due(self, step: int) -> list[str]:
        """Names of the evaluators to run after a step; 0 is before the first."""
        if step == 0:
            return list(self.evaluate_every) if self.evaluate_at_start else []
        return [name for name, every in self.evaluate_every.items() if due(step, every, self.total)]

    def deadline(self, job: Job, start_time: float) -> float | None:
        """Unix seconds at which to stop; None if nothing limits the run."""
        ends = []
        if self.stop_after is not None:
            ends.append(start_time + self.stop_after)
        if job.end_time is not None:
            ends.append(job.end_time - self.stop_margin)
        return min(ends, default=None)


def due(step: int, every: int | None, total: int) -> bool:
    """Whether something with an interval is due after a step; every: None means only at the end"""
    return (every is not None and step % every == 0) or step == total
