"""Training steps of two tiny towers on R ranks, and what one process makes of the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from live_bytes import LiveBytes
from reference import Past, infonce_rows, sigmoid_rows
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.distributed.pool import GlobalPool, LocalPool, PoolConfig, build_pool
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import wrap
from clipx.losses import (
    distillation,
    hard_negative,
    infonce,
    margin,
    matryoshka,
    multi_positive,
    nt_xent,
    triplet,
)
from clipx.losses.global_normalizer import GlobalNormalizer
from clipx.losses.infonce import InfoNCE
from clipx.losses.primitives import nearest_candidates
from clipx.losses.sigmoid import Sigmoid
from clipx.objectives.image_text import ImageText
from clipx.objectives.queue import RowQueue
from clipx.types import Loss, LossOutput, Pool, UserError

MORE_LOSSES = {
    "nt_xent": nt_xent.Config(),
    "triplet_hardest": triplet.Config(),
    "triplet_semi_hard": triplet.Config(mining="semi_hard", margin=0.5),
    "triplet_all": triplet.Config(mining="all", distance="euclidean", margin=1.0),
    "margin_all": margin.Config(pairs="all", margin=1.5),
    "hard_negative": hard_negative.Config(beta=1.0, tau_plus=0.1),
    "multi_positive": multi_positive.Config(image_image=0.5),
    "matryoshka": matryoshka.Config(widths={5: 1.0, 2: 0.5}, loss=infonce.Config()),
}
WITH_A_TEACHER = ("similarity_kl", "interactive")
AVERAGES = "global_normalizer"


@dataclass(frozen=True)
class Case:
    """local_rows: on each rank; chunk: of the chunked pool; kinds: of ids; queue: past rows that
    are kept; steps: how many batches are seen, of which the last counts"""

    loss: str = "infonce"
    pool: str = "gathered"
    local_rows: int = 3
    scale: float = 1 / 0.07
    chunk: int = 2
    kinds: int = 0
    label_smoothing: float = 0.0
    queue: int = 0
    steps: int = 1
    seed: int = 0

    def build_loss(self) -> Any:
        losses = {
            "infonce": InfoNCE(self.label_smoothing),
            "sigmoid": Sigmoid(),
            "triplet": Triplet(),
        }
        if self.loss == AVERAGES:
            return infonce.Config(global_normalizer=GlobalNormalizer(gamma=0.5)).build()
        if self.loss in WITH_A_TEACHER:
            return Taught(self.loss)
        return losses[self.loss] if self.loss in losses else MORE_LOSSES[self.loss].build()

    def build_pool(self, world_size: int) -> Pool:
        if self.pool == "local":
            return LocalPool(world_size)
        return GlobalPool(self.pool, self.chunk)

    def build_objective(self, towers: Towers) -> ImageText:
        return ImageText(
            towers,  # type: ignore[arg-type]
            self.build_loss(),
            normalize=lambda image: image,
            queue=self.queue,
        )

    def batch(self, step: int, world_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs of both towers and ids, of all ranks, rank by rank: the same on every process."""
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        rows = world_size * self.local_rows
        image, text = (
            torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in (6, 4)
        )
        ids = torch.randint(0, 1 + 2 * rows, (rows, self.kinds), generator=generator)
        return image, text, ids if self.kinds else None


class Triplet(Loss):
    """Hardest negatives of the global batch, of VSE++ (arXiv:1707.05612), as a user would write it:
    it uses neither temperature nor bias and logs nothing."""

    def __call__(self, image: Tensor, text: Tensor, *, pool: Pool, **_: Any) -> LossOutput:
        positive = (image * text).sum(-1)
        hardest = nearest_candidates(image, text, pool, 1)[:, 0]
        return LossOutput(F.relu(0.2 - positive + hardest).mean())


class Taught(Loss):
    """A loss of `distillation`, whose teacher's embeddings are a function of the row."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(
        self, image: Tensor, text: Tensor, *, logit_scale: Tensor, pool: Pool, **_: Any
    ) -> LossOutput:
        scale = logit_scale.exp()
        teacher_image, teacher_text = F.normalize(text.detach() ** 3), image.detach().flip(1)
        if self.name == "interactive":
            out = distillation.interactive(image, text, teacher_image, teacher_text, scale, pool)
        else:
            narrow = F.normalize(teacher_image[:, :3])
            teacher = (narrow, F.normalize(teacher_text[:, :3]), 20.0)
            out = distillation.similarity_kl(image, text, scale, *teacher, pool)
        return LossOutput(out + distillation.feature_mse(image, teacher_image))


class Towers(nn.Module):
    """Two small towers in float64 with what ImageText needs of DualEncoder."""

    num_draws = 0

    def __init__(self, scale: float, bias: float | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)).double()
        self.text = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5)).double()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=torch.float64))
        self.logit_bias: nn.Parameter | None = None
        if bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    @classmethod
    def of(cls, case: Case) -> Towers:
        return cls(case.scale, -3.0 if case.loss == "sigmoid" else None)

    def encode_image(self, image: Tensor, draws: None = None) -> Tensor:
        return F.normalize(self.visual(image), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        return F.normalize(self.text(text), dim=-1)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode_image(image), self.encode_text(text)


def train(runtime: Runtime, case: Case) -> dict[str, Any]:
    """Loss, accuracy and gradients of the last step, on one rank, and the pool's state."""
    towers = Towers.of(case).to(runtime.device)
    objective = case.build_objective(towers)
    model = wrap(objective, runtime)
    rank = slice(runtime.rank, None, runtime.world_size)  # ranks take a batch's rows in turns
    pool = case.build_pool(runtime.world_size)
    for step in range(case.steps):
        image, text, ids = case.batch(step, runtime.world_size)
        views = {"image": image, "text": text} | ({} if ids is None else {"ids": ids})
        towers.zero_grad()
        features = model({name: x[rank].to(runtime.device) for name, x in views.items()})
        out = objective.loss(features, pool)
        out.loss.backward()
        model.finish_gradients()
        if step == case.steps // 2 and (case.queue or case.loss == AVERAGES):  # as after a resume
            state = objective.own_state()
            objective.pair_loss = case.build_loss()
            objective.queue = RowQueue(case.queue) if case.queue else None
            objective.load_state_dict(state, strict=False)
    named = towers.named_parameters()
    state = {}
    for rows_by_name in objective.own_state().values():
        state |= {name: rows.cpu().numpy() for name, rows in rows_by_name.items()}
    return {
        "loss": out.loss.item(),
        "accuracy": {name: value.item() for name, value in out.metrics.items()}.get(
            "image_to_text_accuracy"
        ),
        "gradients": {name: p.grad.cpu().numpy() for name, p in named if p.grad is not None},
        "state": state,
    }


def oracle(case: Case, world_size: int) -> tuple[Tensor, Towers, Past | None]:
    """(G,) what each pair adds to the loss of the last step, rank after rank, the towers with the
    gradient of the mean, and the rows that a queue holds before it."""
    model = Towers.of(case)
    held: list[list[Tensor]] = [[], [], []]
    for step in range(case.steps - 1):
        image, text, ids = case.batch(step, world_size)
        with torch.no_grad():
            for rows, new in zip(held, (*model(image, text), ids), strict=True):
                rows.extend([] if new is None else new)
    newest = [torch.stack(rows[-case.queue :]) if rows else None for rows in held]
    past = tuple(newest) if case.queue and case.steps > 1 else None
    image, text, ids = case.batch(case.steps - 1, world_size)
    image_features, text_features = model(image, text)
    scale, bias = model.logit_scale, model.logit_bias
    turns = world_size if case.pool == "local" else 1
    parts = []
    for turn in range(turns):
        rows = slice(turn, None, turns)
        inputs = (image_features[rows], text_features[rows], scale)
        mine = {"ids": None if ids is None else ids[rows], "past": past}
        if case.loss == "triplet":
            parts.append(hardest_triplets(*inputs[:2]))
        elif case.loss == "infonce":
            parts.append(infonce_rows(*inputs, label_smoothing=case.label_smoothing, **mine))
        else:
            parts.append(sigmoid_rows(*inputs, bias, **mine))
    total = torch.cat(parts)
    if turns == 1:
        total = total.view(-1, world_size).T.flatten()
    (total.mean() + 0 * scale).backward()
    return total.detach(), model, past


def one_process(
    case: Case, world_size: int, objective: ImageText | None = None
) -> tuple[float, Towers]:
    """The loss of the last step of all rows in one process, and the towers with its gradient."""
    if objective is None:
        objective = case.build_objective(Towers.of(case))
    towers = objective.encoder
    for step in range(case.steps):
        image, text, ids = case.batch(step, world_size)
        views = {"image": image, "text": text} | ({} if ids is None else {"ids": ids})
        towers.zero_grad()
        out = objective.loss(objective.embed(views), LocalPool())
        out.loss.backward()
    return out.loss.item(), towers


def hardest_triplets(image: Tensor, text: Tensor) -> Tensor:
    """(G,) by the whole matrix of similarities."""
    similarity = image @ text.T
    own = torch.eye(len(image), dtype=torch.bool)
    hardest = similarity.masked_fill(own, -torch.inf).amax(1)
    return F.relu(0.2 - similarity.diagonal() + hardest)


def peak_rows(runtime: Runtime, kind: str) -> float:
    """How many times a rank's rows the pool held at most, while 64 rows of each rank were visited
    and as many gradients came home."""
    rows = torch.zeros(64, 16)
    pool = Case(pool=kind, chunk=8).build_pool(runtime.world_size)
    with LiveBytes() as live:
        pool.share(rows).visit(lambda block: (torch.zeros_like(block.rows[0]),), ("sum",))
    return live.peak / rows.nbytes


def uneven(runtime: Runtime, case: tuple[Any, str]) -> str:
    """What a rank is told that has more rows, wider rows, or further rows than another."""
    kind, what = case
    last = runtime.rank == runtime.world_size - 1
    rows = [torch.zeros(3 + (last and what == "rows"), 4 + (last and what == "width"))]
    rows *= 2 + (last and what == "ids")
    pool = build_pool(PoolConfig(kind=kind), world_size=runtime.world_size)
    try:
        pool.share(*rows)
    except UserError as error:
        return str(error)
    return ""
