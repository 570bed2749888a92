"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from clipx.config import config


@config
class ScheduleConfig:
    """The learning rate after the warmup."""

    kind: Literal["cosine", "constant", "wsd"] = "cosine"
    """`cosine`: half a cosine over the whole run (arXiv:1608.03983). `constant`: the peak to the
    end. `wsd`: the peak, then a cooldown (arXiv:2404.06395), so that a run can be continued for
    longer from any checkpoint before its cooldown."""
    min_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Where `cosine` and `wsd` end, as a fraction of the peak."""
    cooldown: str | None = None
    """Duration of the cooldown of `wsd`; null: the last fifth of the run, which was enough in
    arXiv:2405.18392."""
    cooldown_shape: Literal["sqrt", "linear"] = "sqrt"
    """`sqrt` falls as 1 - sqrt(x), which ended lower than `linear` in arXiv:2405.18392."""


def rate(config: ScheduleConfig, step: int, total: int, warmup: int, cooldown: int = 0) -> float:
    """Multiplier of the peak learning rate in [0, 1] for `step`, counted from 0 to total - 1.

    total, warmup, cooldown: steps; only `wsd` has a cooldown
    """
    if step < warmup:
        return (step + 1) / warmup
    if config.kind == "constant":
        return 1.0
    if config.kind == "cosine":
        fall = 0.5 * (1 - math.cos(math.pi * _passed(step, warmup, total)))
    else:
        x = _passed(step, max(warmup, total - cooldown), total)
        fall = math.sqrt(x) if config.cooldown_shape == "sqrt" else x
    return 1 - fall * (1 - config.min_lr_fraction)


def _passed(step: int, start: int, end: int) -> float:
    """The fraction of the steps from start to end that have passed, in [0, 1]."""
    return min(1.0, max(0, step - start) / max(1, end - start))
