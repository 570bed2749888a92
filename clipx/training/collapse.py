"""Whether features collapse while they are trained: to one point, or to few dimensions.

Figures are of the first rows of the global batch, so that they are the same for any number of
ranks. They travel with a log line, and cost a small singular value decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clipx.metrics import embedding

PREFIX = "features/"
MAX_ROWS = 1024
MIN_ROWS = 32
MIN_DEVIATION = 0.05  # an untrained model has 0.2 and more, a trained one 0.5 to 0.9
MIN_RANK = 2.0  # of a space of hundreds of dimensions


@torch.no_grad()
def spread(
    features: Mapping[str, Tensor],
    positives: Sequence[tuple[str, str]],
    gather: Callable[[Tensor], Tensor],
    world_size: int,
) -> dict[str, float]:
    """Figures by their names in a log line: `features/<name>/<figure>`. All ranks take part.

    Of each kind of float features: `deviation`, the mean standard deviation of a dimension times
    sqrt(D), 1 for rows that are spread evenly and 0 for one point; `effective_rank` and
    `uniformity` (see `clipx.metrics.embedding`). Of each pair of positives: `alignment`.

    features: (B, ...) of a batch by name; gather: of a pool
    """
    rows = {}
    for name, feature in features.items():
        if feature.is_floating_point():
            of_all = gather(feature[: math.ceil(MAX_ROWS / world_size)].float())
            # Some objectives have several rows for a sample, such as patches.
            flat = of_all.reshape(-1, of_all.shape[-1])[:MAX_ROWS]
            # Fewer rows have a low rank in any space. For a skipped step, the log has the reason.
            if len(flat) >= MIN_ROWS and flat.isfinite().all():
                rows[name] = F.normalize(flat, dim=-1)
    figures = {}
    for name, unit in rows.items():
        width = unit.shape[1]
        deviation = unit.std(0, correction=0).mean() * math.sqrt(width)
        figures[f"{PREFIX}{name}/deviation"] = deviation.item()
        figures[f"{PREFIX}{name}/effective_rank"] = embedding.effective_rank(unit)
        figures[f"{PREFIX}{name}/uniformity"] = embedding.uniformity(unit)
    for first, second in positives:
        if first not in rows or second not in rows:
            continue
        distances = embedding.squared_distances(rows[first], rows[second])
        figures[f"{PREFIX}{first}-{second}/alignment"] = distances.mean().item()
    return figures


def alarms(record: Mapping[str, float]) -> list[str]:
    """Messages about features that have collapsed. record: a log line, with figures of `spread`"""
    messages = []
    for key, deviation in record.items():
        if not (key.startswith(PREFIX) and key.endswith("/deviation")):
            continue
        name = key.removeprefix(PREFIX).removesuffix("/deviation")
        rank = record[f"{PREFIX}{name}/effective_rank"]
        if deviation < MIN_DEVIATION or rank < MIN_RANK:
            messages.append(
                f"{name} features collapse: deviation {deviation:.3f} of 1, effective rank "
                f"{rank:.1f}"
            )
    return messages
