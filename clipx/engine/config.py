"""What a training run is told, and what that comes to in steps."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from clipx.config import component, config
from clipx.data.config import DataConfig
from clipx.distributed.runtime import Device
from clipx.engine.optim import OptimConfig
from clipx.engine.precision import PrecisionKind
from clipx.models.dual_encoder import ModelConfig
from clipx.types import Duration, UserError


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
    cache_features: str | None = None
    """Folder for what locked trunks make of the corpus, computed once and then trained on instead
    of the pictures; about 2 bytes x (image width x samples + text width x distinct captions)."""
    seed: int = Field(default=0, ge=0)
    precision: PrecisionKind = "auto"
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
    cooldown: int
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
            return duration.steps(
                global_batch_size=config.global_batch_size, epoch_samples=epoch_samples
            )

        total, cooldown = steps("duration", config.duration), config.optim.schedule.cooldown
        plan = cls(
            total=total,
            warmup=steps("optim.warmup", config.optim.warmup),
            cooldown=steps("optim.schedule.cooldown", cooldown) if cooldown else total // 5,
            log_every=steps("log_every", config.log_every),
            checkpoint_every=steps("checkpoint_every", config.checkpoint_every),
            evaluate_every={
                n: steps(f"evaluators.{n}.every", e.every or config.duration)
                for n, e in config.evaluators.items()
            },
        )
        if faults:
            raise UserError("\n".join(faults))
        return plan


def due(step: int, every: int, total: int) -> bool:
    return step % every == 0 or step == total
