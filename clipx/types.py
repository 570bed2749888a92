"""What passes between the parts of clipx. One page, though it has more than 250 lines.

Dimension letters used in every docstring:
    B  rows on this rank (local batch)      R  ranks (processes)      G = R * B  global batch
    D  embedding width                      T  tokens                 H, W  image height, width
    N, M  queries, candidates               K  number of best candidates kept
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # `clipx --help` must not wait for torch
    from pathlib import Path

    import torch
    from torch import Tensor

Interval = tuple[float, float]
PrecisionKind = Literal["auto", "bf16", "fp16", "fp32", "tf32"]
"""Of matrix products."""


class UserError(Exception):
    """A mistake of the user: the message gives value and remedy. Exit code 2, no traceback."""


class RankError(UserError):
    """A user's mistake that one rank alone has met, so that this rank must report it."""


class EmbeddingError(UserError):
    """A model has given embeddings that are not of unit norm, so that no score would mean anything.

    rows: their numbers among the images or texts that were given; reason: what may have caused it
    """

    def __init__(self, what: str, rows: list[int], names: Sequence[str], reason: str) -> None:
        shown = ", ".join(str(names[row]) for row in rows[:5])
        if len(rows) > 5:
            shown += " ..."
        super().__init__(
            f"{len(rows)} of {len(names)} {what} embeddings are not finite and of unit norm "
            f"({shown}): {reason}"
        )
        self.rows = rows
        self.reason = reason


class PeerError(Exception):
    """Another rank has ended this one. The command line exits with 1 after one line."""


class Stopped(Exception):
    """A run has ended before its last step, with a checkpoint, by a signal or a time limit. The
    command line exits with 75: the same command continues."""


@dataclass(frozen=True)
class Batch:
    """One local batch.

    views: row-wise tensors by name, (B, ...) each: image (B, 3, H, W) uint8; text (B, T) int64, T
        tokens of the longest caption in this batch; label (B,) int64 with data.label_field
    keys: B sample keys
    positions: B global data positions, for the fingerprint and for error messages
    state: the data state after this batch, as a checkpoint stores it
    samples: B numbers of the samples among all of the corpus, the same in each epoch
    """

    views: dict[str, Tensor]
    keys: list[str]
    positions: list[int]
    state: dict[str, Any]
    samples: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class LossOutput:
    """loss: scalar with graph; metrics: detached scalars by their log name without the `train/`
    prefix."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Loss(ABC):
    """A loss of image-text pairs, made by the `Config` of its module. See `clipx.losses`."""

    id_kinds: tuple[str, ...] = ()
    """The ids of rows that it needs: of `caption`, `image`, `sample` and `label`."""
    takes_negatives: bool = True
    """Whether it uses the rows of a queue."""
    needs_logit_bias: bool = False
    """Whether the model must have a logit_bias, and starts from -10 where its JSON has none."""
    takes_hard_negatives: bool = False
    """Whether calls have `hard`, a `HardNegatives`, where the run has mined negatives."""

    @abstractmethod
    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        *,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        pool: Pool,
        ids: Tensor | None = None,
        negatives: Negatives | None = None,
    ) -> LossOutput:
        """The mean over this rank's rows.

        image, text: (B, D) of unit norm; logit_scale: () log of the inverse temperature
        logit_bias: () or None; ids: (B, K) int64, a column for each of `id_kinds`
        """


@dataclass(frozen=True)
class CandidateBlock:
    """Candidates that a pool shows at once: n rows, those of one rank after those of another.

    rows: of each tensor that was shared, (n, ...)
    own: numbers of this rank's rows that are in the block; empty for a block of other ranks' rows
    at: position in the block of the first of them: row own[k] is candidate at + k
    """

    rows: tuple[Tensor, ...]
    own: range
    at: int


Reduce = Literal["sum", "logsumexp"]


class Candidates(Protocol):
    """Rows of all ranks, visited block by block, any number of times in the same order. All ranks
    must make the same visits, because blocks travel between them."""

    def visit(
        self,
        compute: Callable[[CandidateBlock], tuple[Tensor, ...]],
        reduce: tuple[Reduce, ...],
        *extra: Tensor,
    ) -> tuple[Tensor, ...]:
        """Call `compute` with every block. The tensors that it returns for a block's n rows,
        (n, ...) each, are reduced over all ranks on the rank that owns the rows. Returns the
        reduced tensors of this rank's rows, (B, ...) each.

        reduce: how each tensor that `compute` returns is reduced
        extra: (B, ...), further tensors of this rank's rows; in a block they follow those that were
            shared
        """
        ...


class Pool(Protocol):
    """Where a loss finds its candidates. See `clipx.distributed.pool`."""

    def share(self, *rows: Tensor) -> Candidates:
        """Offer this rank's rows, (B, ...) each, to all ranks. Every rank has the same number."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """(G, ...) rows of the global batch, in the order of their positions, without gradient."""
        ...


@dataclass(frozen=True)
class Negatives:
    """Further negatives without gradient, the same on all ranks, such as rows of earlier batches.

    rows, columns: (Q, D), of which row i and column i belong together; ids: (Q, K) int64, or None
    """

    rows: Tensor
    columns: Tensor
    ids: Tensor | None = None


@dataclass(frozen=True)
class TeacherInfo:
    """What distillation needs to know of a teacher.

    embed_dim: width of its embeddings; scale: its inverse temperature, by which cosines become
        logits; digest: SHA-256 of all that its embeddings depend on; source: for messages
    """

    embed_dim: int
    scale: float
    digest: str
    source: str


@dataclass(frozen=True)
class HardNegatives:
    """Texts of this rank that are further negatives of the images of all ranks, with gradient.

    columns: (M, D) of unit norm, as many on each rank
    row_ids: (B, K) int64 of this rank's images; column_ids: (M, K). A pair that has one in common
        does not count
    """

    columns: Tensor
    row_ids: Tensor
    column_ids: Tensor


class ImageTextEncoder(Protocol):
    """What evaluators, search and export need of a model. Rows are float32 and of unit norm."""

    @property
    def image_size(self) -> int: ...
    @property
    def scale(self) -> float: ...
    def fit(self, image: Tensor) -> Tensor: ...  # (3, H, W) uint8 -> its pixels as the model's
    def encode_image(self, images: Any) -> Tensor: ...
    def encode_text(self, texts: list[str]) -> Tensor: ...
    def text_digest(self) -> str: ...  # equal where all text embeddings are


class Ranks(Protocol):
    """The processes that evaluate together. `clipx.distributed.runtime.Runtime` is one."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]:
        """One picklable value of each rank, in rank order."""
        ...


@dataclass
class Alone:
    """One process."""

    rank: int = 0
    world_size: int = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


class StopRequested(Exception):
    """A rank has to stop during an evaluation; the message names the signal or time limit."""


@dataclass(frozen=True)
class Setting:
    """How an evaluator runs.

    cache: folder of text classifiers; None in training, where the text tower changes
    progress: called with the number of embedded images and of all images
    stop_reason: why this rank has to stop, or None
    undecodable: messages of the images that `embed_images` replaced by gray ones
    """

    ranks: Ranks = field(default_factory=Alone)
    cache: Path | None = None
    progress: Callable[[int, int], None] = lambda done, total: None
    device: torch.device | str = "cpu"
    stop_reason: Callable[[], str | None] = lambda: None
    undecodable: dict[str, None] = field(default_factory=dict)

    def check_stop(self) -> None:
        """Raise StopRequested if this rank has to stop. Long computations call it now and then."""
        if reason := self.stop_reason():
            raise StopRequested(reason)


@dataclass(frozen=True)
class Result:
    """The metrics of one test set; equal on all ranks.

    metrics: name without that of the set -> value, a fraction where it is a rate
    intervals: name -> (low, high) of 95 %
    keys: of the N samples, by which the results of two models are paired
    samples: name -> (N,) float64 whose mean, with (N,) weights if they differ, is the metric
    tables, alarms: rows of plain data and messages, for people and reports
    clusters: (N,) int64, equal for samples that are not independent, such as pictures of one
        product; None if all are
    """

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    keys: Sequence[str] = field(default_factory=list)
    samples: dict[str, Tensor] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    clusters: Tensor | None = None

    def add(self, name: str, value: float, interval: Interval | None = None) -> None:
        self.metrics[name] = value
        if interval is not None:
            self.intervals[name] = interval


class Evaluator(Protocol):
    def evaluate(
        self, encoder: ImageTextEncoder, setting: Setting
    ) -> Result: ...  # the same on all ranks


class Tracker(Protocol):
    def log(self, record: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Report(Protocol):
    """Where the loop reports to a person. Called on all ranks; shows something on the first."""

    @property
    def seconds(self) -> float:
        """Since this start of the run."""
        ...

    def say(self, text: str) -> None:
        """Show a message."""
        ...

    def step(self, step: int, activity: str | None = None) -> None:
        """step: the number of those taken, after each of them; activity: what comes next, such as
        an evaluation, if it is no step"""
        ...

    def log(self, record: dict[str, Any]) -> None:
        """record: a line of metrics.jsonl"""
        ...

    def close(self) -> None:
        """After the last call, also after an error."""
        ...


class MakeReport(Protocol):
    """Called once, when the number of steps is known."""

    def __call__(self, *, total_steps: int, first_step: int, show: bool) -> Report: ...
