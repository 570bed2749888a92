"""What a training run is told, and what that comes to in steps."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from clipx.config import component, config
from clipx.data.config import DataConfig
from clipx.distributed.pool import PoolConfig
from clipx.distributed.runtime import Device, Job
from clipx.distributed.wrap import Parallel
from clipx.durations import Duration, parse_seconds
from clipx.models.dual_encoder import ModelConfig
from clipx.training.compiling import CompileKind
from clipx.training.optim import OptimConfig
from clipx.training.precision import PrecisionKind
from clipx.types import UserError


@config
class TrainConfig:
    """One training run. Durations are strings: `2000 steps`, `3 epochs`, `400M samples`."""

    run_dir: str
    data: DataConfig
    model: ModelConfig
    duration: str
    global_batch_size: int = Field(ge=1, le=2**31)
    """Pairs contrasted with one another in a step, over all ranks."""
    loss: component("clipx.losses") = Field(default="infonce", validate_default=True)  # type: ignore[valid-type]
    pool: PoolConfig = PoolConfig()
    optim: OptimConfig = OptimConfig()
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Local rows that are embedded at a time, where the activations of all of them do not fit in
    memory: the same gradient for a third more compute (arXiv:2101.06983); null: all at once."""
    grad_checkpointing: bool = False
    """Keep the inputs of blocks instead of their activations, and compute these again in backward:
    a third more compute too. To be tried before micro-batches: it needs no second pass."""
    parallel: Parallel = "auto"
    """ddp: a copy of the model on every rank. fsdp2: weights, gradients, optimizer state and
    averages shared out over the ranks. auto: fsdp2 where `accelerate launch` was told so."""
    compile: CompileKind = "none"
    """towers: torch.compile for both. Pays on GPUs, in runs that are much longer than the minutes
    it takes; on CPUs it bypasses the packing of captions. data.text_multiple=8 with it
    keeps the text's matmuls in shapes that GPUs like."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, e.g. 0.9999, which is then what evaluations and
    `load_model` see; null: none."""
    max_nonfinite_steps: int = Field(default=10, ge=1)
    """Steps in a row without a finite loss and gradient, each left out, after which a run stops."""
    evaluators: dict[str, component("clipx.evaluators")] = Field(default_factory=dict)  # type: ignore[valid-type]
    """By the name of the set, which begins the name of its metrics."""
    cache_features: str | None = None
    """Folder for what locked trunks make of the corpus, computed once and then trained on instead
    of the pictures; about 2 bytes x (image width x samples + text width x distinct captions)."""
    seed: int = Field(default=0, ge=0)
    precision: PrecisionKind = "auto"
    device: Device = "auto"
    log_every: str = "20 steps"
    checkpoint_every: str = "1000 steps"
    """Or a time, `15 minutes`, by the clock of rank 0. Evaluations have a checkpoint before them
    in any case."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """The newest ones."""
    keep_every: str | None = None
    """Checkpoints that are kept for good, beside the newest: those of multiples of `10000 steps`,
    which should be a multiple of checkpoint_every; null: none."""
    save_async: bool = True
    """Copy what a checkpoint holds, write it while training goes on. Costs host memory: three times
    the weights with AdamW, a fourth time with `ema`."""
    stop_after: str | float | None = None
    """A time after which the run stops by itself with a checkpoint, `23h30m` or seconds; null: only
    at the end that SLURM says its job has."""
    stop_margin: str | float = "2 minutes"
    """How long before the end of a SLURM job the run stops: a step, a save and the way out."""
    timeout_minutes: float = Field(default=30.0, gt=0, le=525_600)
    """How long ranks wait for one another before they give up and name the one that hangs. An
    evaluation, for which the others wait, must take less."""
    tensorboard: bool = False


@dataclass(frozen=True)
class Plan:
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
            return duration.steps(
                global_batch_size=config.global_batch_size, epoch_samples=epoch_samples
            )

        def seconds(key: str, text: str | float) -> float:
            try:
                return parse_seconds(text)
            except ValueError as error:
                faults.append(f"{key}: {error}")
                return 1

        total, cooldown = steps("duration", config.duration), config.optim.schedule.cooldown
        every, keep, after = config.checkpoint_every, config.keep_every, config.stop_after
        timed = is_time(every)
        plan = cls(
            total=total,
            warmup=steps("optim.warmup", config.optim.warmup),
            cooldown=steps("optim.schedule.cooldown", cooldown) if cooldown else total // 5,
            log_every=steps("log_every", config.log_every),
            checkpoint_every=None if timed else steps("checkpoint_every", every),
            checkpoint_seconds=parse_seconds(every) if timed else None,
            keep_every=steps("keep_every", keep) if keep else None,
            stop_after=seconds("stop_after", after) if after else None,
            stop_margin=seconds("stop_margin", config.stop_margin),
            evaluate_every={
                n: steps(f"evaluators.{n}.every", e.every or config.duration)
                for n, e in config.evaluators.items()
            },
        )
        if faults:
            raise UserError("\n".join(faults))
        return plan

    def deadline(self, job: Job, began: float) -> float | None:
        """Unix seconds at which to stop, None where nothing limits the run."""
        ends = [] if self.stop_after is None else [began + self.stop_after]
        ends += [] if job.end_time is None else [job.end_time - self.stop_margin]
        return min(ends, default=None)


def due(step: int, every: int | None, total: int) -> bool:
    """every: None: only the last one is"""
    return (every is not None and step % every == 0) or step == total


def is_time(text: str) -> bool:
    try:
        return parse_seconds(text) > 0
    except ValueError:
        return False
