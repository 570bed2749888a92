"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math


def cosine(step: int, total: int, warmup: int) -> float:
    """Multiplier of the peak learning rate in [0, 1]: linear from 1/warmup, then half a cosine to 0
    (arXiv:1608.03983)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
