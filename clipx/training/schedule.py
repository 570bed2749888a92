"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from clipx.config import config
from clipx.durations import DurationText


@config
class ScheduleConfig:
    """The learning rate after the warmup."""

    kind: Literal["cosine", "constant", "wsd"] = "cosine"
    """`cosine`: half a cosine over the whole run (arXiv:1608.03983). `constant`: the peak to the
    end. `wsd`: the peak, then a cooldown (arXiv:2404.06395), so that a run can be continued for
    longer from any checkpoint before its cooldown."""
    min_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Where `cosine` and `wsd` end, as a fraction of the peak."""
    cooldown: DurationText | None = None
    """Duration of the cooldown of `wsd`; null: the last fifth of the run, which was enough in
    arXiv:2405.18392."""
    cooldown_shape: Literal["sqrt", "linear"] = "sqrt"
    """`sqrt` falls as 1 - sqrt(x), which ended lower than `linear` in arXiv:2405.18392."""


def rate(config: ScheduleConfig, step: int, total: int, warmup: int, cooldown: int = 0) -> float:
    """Multiplier of the peak learning rate in [0, 1] for `step`, counted from 0 to total - 1.

    total, warmup, cooldown: steps; only `wsd` has a cooldown
    """
    if step < warmup:
        return (step + 1) / warmup  # step 0 has a rate above 0, or it would do nothing
    if config.kind == "constant":
        return 1.0
    start = warmup
    if config.kind == "wsd":
        start = max(warmup, total - cooldown)  # the peak lasts until the cooldown
    # x: the fraction of the decay that has passed; fall: from 0 at the peak to 1 at the end.
    x = min(1.0, max(0, step - start) / max(1, total - start))
    if config.kind == "cosine":
        fall = 0.5 * (1 - math.cos(math.pi * x))
    elif config.cooldown_shape == "sqrt":
        fall = math.sqrt(x)
    else:
        fall = x
    return 1 - fall * (1 - config.min_lr_fraction)
