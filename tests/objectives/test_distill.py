"""A student beside a frozen teacher: CLIP-KD."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stepping import ONE_PROCESS, batch, model
from tiny_runs import MODEL
from torch import Tensor
from torch.nn import functional as F

from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.distributed.wrap import SingleProcess
from clipx.losses.infonce import InfoNCE
from clipx.models.dual_encoder import DualEncoder
from clipx.objectives import distill
from clipx.objectives.distill import Distill
from clipx.objectives.image_text import ImageText
from clipx.objectives.objective import Objective, Parts
from clipx.objectives.teacher import Teacher
from clipx.training.learner import Learner
from clipx.training.precision import Precision
from clipx.training.step import Step
from clipx.types import Batch, TeacherInfo, UserError

ROWS = 12
CPU = torch.device("cpu")
WIDE = MODEL | {"embed_dim": 24}
ALL_TERMS = distill.Config("t", feature=2.0, similarity=0.7, interactive=0.5, contrast=0.3)


class Counted:
    """A teacher, and the rows that it has embedded."""

    def __init__(self, cfg: dict[str, Any] = WIDE, digest: str = "ab") -> None:
        self.model = model(cfg, seed=9).eval().requires_grad_(False)
        self.num_rows = 0
        self.info = TeacherInfo(cfg["embed_dim"], 20.0, digest, "the teacher")

    def load(self, name: str) -> Teacher:
        def encode_image(images: Tensor) -> Tensor:
            self.num_rows += len(images)
            with torch.no_grad():
                return self.model.encode_image(normalize(images))

        def encode_text(tokens: Tensor) -> Tensor:
            with torch.no_grad():
                return self.model.encode_text(tokens)

        return Teacher(self.info, encode_image, encode_text)


def build(
    config: distill.Config = ALL_TERMS,
    teacher: Counted | None = None,
    cfg: dict[str, Any] = MODEL,
    **parts: Any,
) -> Distill:
    torch.manual_seed(0)
    load = (teacher or Counted()).load
    made = Parts(model(cfg), cfg["embed_dim"], InfoNCE(), normalize, load_teacher=load, **parts)
    torch.manual_seed(1)
    objective = config.build(made)
    objective.lock_unused()
    return objective


def loss_of(objective: Objective, rows: Batch) -> Any:
    return objective.loss(objective.embed(objective.prepare(rows)), LocalPool())


def embedded(encoder: DualEncoder, rows: Batch) -> tuple[Tensor, Tensor]:
    image = encoder.encode_image(normalize(rows.views["image"]))
    return image.double(), encoder.encode_text(rows.views["text"]).double()


def info_nce(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    return F.cross_entropy(scale * rows @ columns.T, torch.arange(len(rows)))


def terms_by_hand(objective: Distill, teacher: Counted, rows: Batch) -> dict[str, Tensor]:
    """In float64, with whole matrices."""
    image, text = embedded(objective.encoder, rows)
    of_image, of_text = (x.detach() for x in embedded(teacher.model, rows))
    scale = objective.encoder.logit_scale.double().exp()
    kl = torch.zeros((), dtype=torch.float64)
    for transpose in (False, True):
        student = scale * image @ text.T
        reference = 20.0 * of_image @ of_text.T
        if transpose:
            student, reference = student.T, reference.T
        p = reference.softmax(1)
        kl = kl + (p * (p.log() - student.log_softmax(1))).sum(1).mean() / 2
    pairs = (info_nce(image, text, scale) + info_nce(text, image, scale)) / 2
    if isinstance(objective.image_projection, torch.nn.Linear):
        assert isinstance(objective.text_projection, torch.nn.Linear)
        image = F.normalize(image @ objective.image_projection.weight.double().T
                            + objective.image_projection.bias.double(), dim=-1)  # fmt: skip
        text = F.normalize(text @ objective.text_projection.weight.double().T
                           + objective.text_projection.bias.double(), dim=-1)  # fmt: skip
    distance = (image - of_image).square().sum(1).mean() + (text - of_text).square().sum(1).mean()
    crossed = (info_nce(image, of_text, scale) + info_nce(text, of_image, scale)) / 2
    return {"feature": distance, "similarity": kl, "interactive": crossed, "contrast": pairs}


@pytest.mark.parametrize("cfg", [MODEL, WIDE], ids=["same width", "wider teacher"])
def test_the_loss_is_the_weighted_sum_of_its_terms(cfg: dict[str, Any]) -> None:
    """Value and gradients against float64, each term by its name in the log."""
    teacher = Counted(cfg)
    objective = build(ALL_TERMS, teacher)
    rows = batch(ROWS)
    out = loss_of(objective, rows)
    terms = terms_by_hand(objective, teacher, rows)
    expected = torch.zeros((), dtype=torch.float64)
    for name, term in terms.items():
        expected = expected + getattr(ALL_TERMS, name) * term
        logged = "pair_loss" if name == "contrast" else f"{name}_loss"
        assert out.metrics[logged].item() == pytest.approx(term.item(), rel=1e-4)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    trained = [p for p in objective.parameters() if p.requires_grad]
    actual = torch.autograd.grad(out.loss, trained)
    for gradient, reference in zip(actual, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["feature", "similarity", "interactive"])
def test_a_term_alone_trains_both_towers(name: str) -> None:
    """Each parameter has a gradient, for which data-parallel training waits."""
    weights = {"feature": 0.0, "similarity": 0.0, "interactive": 0.0, "contrast": 0.0, name: 1.0}
    objective = build(distill.Config("t", **weights))
    out = loss_of(objective, batch(ROWS))
    out.loss.backward()
    assert out.metrics.keys() == {f"{name}_loss"}
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    has_projection = name != "similarity"
    assert ("image_projection.weight" in dict(objective.own_parameters())) == has_projection


def test_without_the_teachers_terms_it_is_image_text() -> None:
    config = distill.Config("t", similarity=1e-30)
    objective = build(config)
    rows = batch(ROWS)
    pairs = ImageText(objective.encoder, InfoNCE(), normalize=normalize)
    torch.testing.assert_close(loss_of(objective, rows).loss, loss_of(pairs, rows).loss)


def test_a_scale_of_the_teacher_in_the_config_goes_first() -> None:
    learned = loss_of(build(distill.Config("t")), batch(ROWS)).loss
    same = loss_of(build(distill.Config("t", teacher_scale=20.0)), batch(ROWS)).loss
    other = loss_of(build(distill.Config("t", teacher_scale=5.0)), batch(ROWS)).loss
    assert torch.equal(learned, same)
    assert not torch.equal(learned, other)


def gradients(
    micro_batch_size: int | None, teacher: Counted
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(gradient of each parameter, metrics) of one step"""
    objective = build(ALL_TERMS, teacher)
    found: dict[str, Tensor] = {}

    class Recorder(torch.optim.SGD):
        def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
            for name, parameter in objective.named_parameters():
                if parameter.grad is not None:
                    found[name] = parameter.grad.clone()

    trained = [p for p in objective.parameters() if p.requires_grad]
    learner = Learner(
        ONE_PROCESS,
        objective.encoder,
        objective,
        SingleProcess(objective),
        Recorder(trained, lr=1.0),
        Precision(torch.float32, CPU, None),
    )
    objective.train()
    step = Step(learner, LocalPool(), micro_batch_size=micro_batch_size)
    return found, step(batch(ROWS)).metrics


@pytest.mark.parametrize("size", [4, 5])
def test_micro_batches_equal_the_big_batch_and_ask_the_teacher_once(size: int) -> None:
    whole = Counted()
    expected, metrics = gradients(None, whole)
    teacher = Counted()
    actual, metrics_of_parts = gradients(size, teacher)
    assert teacher.num_rows == whole.num_rows == ROWS
    assert actual.keys() == expected.keys() != set()
    for name, gradient in expected.items():
        # float32 sums in another order: single entries are off by some 1e-6 of gradients near 1
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5)
    for name, value in metrics.items():
        torch.testing.assert_close(metrics_of_parts[name], value, rtol=1e-5, atol=1e-6)


def test_the_teacher_is_frozen_and_in_no_checkpoint() -> None:
    teacher = Counted()
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    objective = build(ALL_TERMS, teacher).train()
    loss_of(objective, batch(ROWS)).loss.backward()
    assert not teacher.model.training
    assert all(p.grad is None for p in teacher.model.parameters())
    for name, tensor in teacher.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    own = {id(p) for p in teacher.model.parameters()}
    assert own.isdisjoint(map(id, objective.parameters()))
    projections = {f"{k}_projection.{w}" for k in ("image", "text") for w in ("weight", "bias")}
    assert objective.own_state().keys() == {*projections, "_extra_state"}


def test_the_projections_are_saved_and_another_teacher_is_refused() -> None:
    state = build().own_state()
    other = build()
    with torch.no_grad():
        other.get_parameter("image_projection.weight").zero_()
    other.load_state_dict(state, strict=False)
    assert torch.equal(
        other.own_state()["image_projection.weight"], state["image_projection.weight"]
    )
    changed = build(teacher=Counted(digest="cd"))
    with pytest.raises(UserError, match="the teacher is not the teacher that this run began with"):
        changed.load_state_dict(state, strict=False)


def test_stored_embeddings_give_the_loss_of_the_live_teacher() -> None:
    teacher = Counted()
    rows = batch(ROWS)
    live = loss_of(build(ALL_TERMS, teacher), rows).loss
    with torch.no_grad():
        image, text = embedded(teacher.model, rows)
    views = {**rows.views, "teacher_image": image.half(), "teacher_text": text.half()}
    weights = vars(ALL_TERMS) | {"teacher": "stored"}
    objective = build(distill.Config(**weights), stored_teacher=teacher.info)
    stored = loss_of(objective, Batch(views, rows.keys, rows.positions, {})).loss
    assert stored.item() == pytest.approx(live.item(), rel=1e-3)  # float16
    assert stored.item() != live.item()


@pytest.mark.parametrize(
    ("settings", "parts", "message"),
    [
        ({"similarity": 0}, {}, r"objective\.feature, similarity and interactive are all 0"),
        ({"contrast": 0}, {"queue": 8}, r"pool\.queue 8: objective\.contrast is 0"),
        ({"teacher": "stored"}, {}, r"teacher stored: data\.reinforced names no folder"),
    ],
)
def test_settings_without_effect_are_refused(
    settings: dict[str, Any], parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(distill.Config(**{"teacher": "t", **settings}), **parts)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    teacher = Counted(MODEL)
    objective = build(distill.Config("t", feature=1.0, contrast=0.0), teacher)
    objective.encoder.load_state_dict(teacher.model.state_dict())
    with torch.no_grad():
        objective.encoder.logit_scale.fill_(math.log(20.0))
    assert loss_of(objective, batch(ROWS)).loss.item() == pytest.approx(0, abs=1e-5)
