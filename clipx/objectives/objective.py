"""The interface of what training optimizes: rows to features, features to a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from clipx.data.augment import Augmentation
from clipx.data.sample import PairKind
from clipx.objectives.teacher import Teacher
from clipx.types import Batch, Loss, LossOutput, Pool, TeacherInfo, UserError

Views = dict[str, Tensor]
"""Row-wise tensors of a batch by name, (B, ...) each."""
Features = dict[str, Tensor]
"""Row-wise tensors for the loss by name, (B, ...) each: float32 features, and ids."""


def no_teacher(model: str) -> Teacher:
    raise UserError(f"objective.teacher {model}: teachers can be loaded in training only")


@dataclass(frozen=True)
class Parts:
    """What a run gives its objective.

    encoder: the model, or its heads alone; embed_dim: width of its features
    loss: of image-text pairs; queue: pairs of earlier steps that serve as further negatives
    normalize: images of a batch on the device -> the model's input
    seed: of the run; pad_id: the token that pads captions; num_samples: of the corpus
    vocab_size: number of token ids; special_ids: of those that are no part of a caption
    load_teacher: a model as `clipx eval` takes it -> a teacher for this model; raises UserError
    stored_teacher: of the embeddings in the batches; None if they have none
    """

    encoder: Any
    embed_dim: int
    loss: Loss
    normalize: Callable[[Tensor], Tensor]
    seed: int = 0
    pad_id: int = 0
    queue: int = 0
    num_samples: int = 0
    vocab_size: int = 0
    special_ids: frozenset[int] = frozenset()
    load_teacher: Callable[[str], Teacher] = no_teacher
    stored_teacher: TeacherInfo | None = None

    @property
    def of_pairs(self) -> dict[str, Any]:
        """Arguments that objectives of matched rows have in common."""
        return {
            "normalize": self.normalize,
            "seed": self.seed,
            "pad_id": self.pad_id,
            "queue": self.queue,
        }


class ObjectiveConfig(Protocol):
    """The `Config` of a module in clipx/objectives."""

    contrasts_text: bool
    """Whether it uses captions or pairs, and the run's `loss` and `pool.queue`."""

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        """One for each view of an image. of_run: that of the run's `data`"""
        ...

    def build(self, parts: Parts) -> Objective: ...


class DataUse:
    """Base of a `Config` whose objective takes more or other data than an image of each sample and,
    where it contrasts texts, a caption."""

    @property
    def pair_kind(self) -> PairKind | None:
        """Whether samples are pairs of images or of texts."""
        return None

    @property
    def takes_negatives(self) -> bool:
        """Whether mined negatives, the views negative_text and num_negatives, reach its loss."""
        return False

    @property
    def needs_pixels(self) -> bool:
        """Whether it cannot train on features of locked towers (`cache_features`), but needs pixels
        and token ids."""
        return False


def data_use(config: ObjectiveConfig) -> DataUse:
    return config if isinstance(config, DataUse) else DataUse()


class Objective(nn.Module, ABC):
    """A model together with the loss that trains it.

    The cut between `embed` and `loss` is all that training needs to know. `embed` needs no other
    row, so a batch can be embedded in micro-batches (GradCache) and under DDP or FSDP2; `loss`
    needs all rows of all ranks, and is called once for each step.

    encoder: the model whose weights a checkpoint stores as model.safetensors. All other state that
    a subclass keeps between steps belongs into its `state_dict`, and is saved and resumed.
    trained_parts: what of the encoder takes part in `embed` and `loss`, by the beginning of its
    parameters' names. The rest is saved as it is.
    positives: names of features whose rows belong together, for the alarm about a collapse
    """

    encoder: Any
    positives: tuple[tuple[str, str], ...] = ()
    trained_parts: tuple[str, ...] = ("",)

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def lock_unused(self) -> None:
        """Stop training the encoder's parameters that get no gradient. Called once, before the
        optimizer is built."""
        for name, parameter in self.encoder.named_parameters():
            if not name.startswith(self.trained_parts):
                parameter.requires_grad_(False)

    def prepare(self, batch: Batch) -> Views:
        """The views that `embed` takes, on the CPU. They may depend on samples, their positions and
        the run's seed, not on ranks or on the step."""
        return batch.views

    @abstractmethod
    def embed(self, views: Views) -> Features:
        """Features of some rows, each computed from its row alone."""

    @abstractmethod
    def loss(self, features: Features, pool: Pool) -> LossOutput:
        """The mean over this rank's rows, contrasted with those of all ranks. Each trained
        parameter must take part in `embed` or here, because data-parallel training waits for its
        gradient."""

    @abstractmethod
    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """(blocks, roots) for FSDP2: modules to shard one by one, and the modules around them that
        `embed` calls. Parameters outside of all roots stay whole on every rank."""

    def after_step(self) -> dict[str, Tensor]:
        """Called after each step, also a skipped one. Returns detached scalars for the log."""
        return {}

    def forward(self, views: Views) -> Features:
        # DDP and FSDP2 hook `forward`: only a call through it exchanges gradients.
        return self.embed(views)

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """`named_parameters` without the encoder's."""
        return [(name, p) for name, p in self.named_parameters() if not _is_encoders(name)]

    def whole_parameters(self) -> list[nn.Parameter]:
        """Those of its own that FSDP2 leaves whole on every rank: outside of all roots."""
        own = self.own_parameters()
        if not own:
            return []
        _, roots = self.shards()
        sharded = {id(p) for root in roots for p in root.parameters()}
        return [p for _, p in own if id(p) not in sharded]

    def own_state(self) -> dict[str, Any]:
        """`state_dict` without the encoder, whose weights have a file of their own. Loaded by
        `load_state_dict(state, strict=False)`."""
        own = {}
        for name, value in self.state_dict().items():
            if not _is_encoders(name):
                own[name] = value
        return own


def _is_encoders(name: str) -> bool:
    """Also where an objective contains others, which have the same encoder."""
    return ".encoder." in f".{name}"
