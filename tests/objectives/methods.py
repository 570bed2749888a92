"""A batch of several views and an objective over a tiny model, for the tests of objectives."""

from __future__ import annotations

from typing import Any

import tiny_runs
import torch
from stepping import model
from torch import Tensor

from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.losses.infonce import InfoNCE
from clipx.objectives.objective import Objective, Parts
from clipx.objectives.views import ViewsConfig
from clipx.types import Batch, LossOutput

# With few words: CLIP's 49,408 would be nearly all of the work.
MODEL: dict[str, Any] = tiny_runs.MODEL | {
    "text_cfg": tiny_runs.MODEL["text_cfg"] | {"vocab_size": 60}
}
DROPOUT = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"patch_dropout": 0.5}}
VIEWS = ViewsConfig(hidden=12, width=6)


def batch(rows: int = 4, num_views: int = 3, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    size = MODEL["vision_cfg"]["image_size"]
    views: dict[str, Tensor] = {}
    for name in ("image", "image_2", "image_3")[:num_views]:
        shape = (rows, 3, size, size)
        views[name] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    views["text"] = torch.randint(1, 40, (rows, 5), generator=generator)
    views["text"][:, -1] = MODEL["text_cfg"]["vocab_size"] - 1
    return Batch(views, [str(row) for row in range(rows)], list(range(rows)), {})


def build(config: Any, cfg: dict[str, Any] = MODEL, **parts: Any) -> Any:
    torch.manual_seed(0)
    parts.setdefault("num_samples", 1000)
    objective = config.build(Parts(model(cfg), cfg["embed_dim"], InfoNCE(), normalize, **parts))
    objective.lock_unused()
    return objective


def loss_of(objective: Objective, rows: Batch) -> LossOutput:
    return objective.loss(objective.embed(objective.prepare(rows)), LocalPool())
