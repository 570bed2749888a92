"""Build the index of embeddings, with parameters that are measured against exact search."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clipx import metrics
from clipx.search.vector_index import EFFORTS, Kind, Spec, VectorIndex, spec_of
from clipx.types import Interval, UserError

NUM_NEIGHBORS = 10
NO_ROWS = np.empty(0, dtype=np.int64)
NUM_QUERIES = 1000  # for the choice, and as many others to measure the choice
EXACT_UP_TO = 20_000
"""Rows that are searched exactly unless a kind is given: 2 ms a query of 512 dimensions."""


@dataclass(frozen=True)
class Trial:
    """An index that was tried. recall: of the exact 10 nearest, mean over queries, with its 95 %
    interval; milliseconds: of one query alone, median; num_bytes: of memory"""

    spec: Spec
    recall: float
    interval: Interval
    milliseconds: float
    num_bytes: int


@dataclass(frozen=True)
class Chosen:
    """index: what was chosen; trials: what it was chosen from; measured: on queries that had no
    part in the choice"""

    index: VectorIndex
    trials: list[Trial]
    measured: Trial


def build_index(
    rows: np.ndarray,
    queries: np.ndarray | None,
    *,
    kind: Kind | Literal["auto"] = "auto",
    recall: float = 0.95,
    max_bytes: int | None = None,
    seed: int = 0,
    removed: np.ndarray = NO_ROWS,
    grown: VectorIndex | None = None,
    note: Callable[[str], None] = lambda text: None,
    on_built: Callable[[VectorIndex, float], None] = lambda index, seconds: None,
) -> Chosen:
    """The fastest index that finds the share `recall` of the exact nearest neighbors and needs at
    most `max_bytes` of memory. Raises UserError where none does.

    rows: (N, D) of unit norm; queries: (M, D), such as captions that look for images, of which
        zeros are left out, or None for rows that look for others
    removed: (n,) rows that are not to be found
    grown: an index of these rows, which is taken if it finds enough
    note: called with a line about each kind that is left out
    on_built: called with each index and the seconds that its construction took
    """
    first, second = _queries(rows, queries, removed, seed)
    kinds: list[Kind] = [kind] if kind != "auto" else ["hnsw", "ivf", "ivfpq"]
    if kind == "exact" or (kind == "auto" and len(rows) <= EXACT_UP_TO):
        index = VectorIndex.build(Spec("exact"), rows).without(removed)
        return Chosen(index, [], measure(index, second))
    trials: list[Trial] = []
    if grown is not None:  # only more effort, and no new index, as long as it finds enough
        met = _least_effort(grown.without(removed), first, recall, trials)
        if met is not None:
            return Chosen(met, trials, measure(met, second))
        note(f"{grown.spec.kind}: finds less than --recall {recall} since it has grown")
    best: tuple[Trial, VectorIndex] | None = None
    ivf: VectorIndex | None = None
    for each in kinds:
        spec = spec_of(each, len(rows), rows.shape[1])
        size = VectorIndex(spec, rows).num_bytes()
        if max_bytes is not None and size > max_bytes:
            note(f"{each}: {size / 2**20:,.0f} MiB, more than --memory; not built")
            continue
        start = time.perf_counter()
        other = ivf if each == "ivfpq" else None
        built = VectorIndex.build(spec, rows, seed=seed, other=other).without(removed)
        if each == "ivf":
            ivf = built
        on_built(built, time.perf_counter() - start)
        met = _least_effort(built, first, recall, trials)
        if met is not None and (best is None or trials[-1].milliseconds < best[0].milliseconds):
            best = (trials[-1], met)
    if best is None:
        found = max((trial.recall for trial in trials), default=0.0)
        raise UserError(
            f"--recall {recall}: no index within the limits finds that much, the best "
            f"{found:.3f}; lower it, raise --memory, or use --kind exact"
        )
    return Chosen(best[1], trials, measure(best[1], second))


def _least_effort(
    index: VectorIndex, questions: Questions, recall: float, trials: list[Trial]
) -> VectorIndex | None:
    """The index with the least effort that finds enough, whose trial is the last one; None if no
    effort does.

    trials: to which each effort that is measured is added
    """
    for effort in EFFORTS[index.spec.kind]:
        tried = index.with_effort(effort)
        trial = measure(tried, questions)
        trials.append(trial)
        # Its lower bound, so that other queries will find as much.
        if trial.interval[0] >= recall:
            return tried  # to try harder is slower
    return None


@dataclass(frozen=True)
class Questions:
    """Queries with their exact answers. rows: (Q, D); nearest: (Q, 10) rows of the matrix
    own: (Q,) row that a query is, which does not count as found; -1 for other queries"""

    rows: Tensor
    nearest: Tensor
    own: Tensor


def _queries(
    rows: np.ndarray, queries: np.ndarray | None, removed: np.ndarray, seed: int
) -> tuple[Questions, Questions]:
    """Two sets without a query in common."""
    exact = VectorIndex(Spec("exact"), rows).without(removed)
    source = rows if queries is None else queries
    candidates = np.flatnonzero(exact.kept if queries is None else queries.any(axis=1))
    count = min(2 * NUM_QUERIES, len(candidates) // 2 * 2)
    if count < 2:
        raise UserError(f"an index needs two vectors at least, not {len(candidates)}")
    picked = np.random.default_rng(seed).choice(candidates, count, replace=False)
    both = []
    for numbers in (picked[: count // 2], picked[count // 2 :]):
        asked = torch.from_numpy(np.asarray(source[numbers], dtype=np.float32))
        own = torch.from_numpy(numbers) if queries is None else torch.full((len(numbers),), -1)
        nearest = exact.search(asked, _depth(own))[1]
        both.append(Questions(asked, _without(own, nearest), own))
    return both[0], both[1]


def _depth(own: Tensor) -> int:
    return NUM_NEIGHBORS + int((own >= 0).any())


def _without(own: Tensor, found: Tensor) -> Tensor:
    """(Q, 10) of (Q, 10 or 11) found rows, without the query's own; -2 fills up."""
    if found.shape[1] == NUM_NEIGHBORS:
        return found
    is_own = found == own[:, None]
    order = is_own.long().sort(dim=1, stable=True).indices  # its own goes last
    return found.masked_fill(is_own, -2).gather(1, order)[:, :NUM_NEIGHBORS]


def measure(index: VectorIndex, questions: Questions) -> Trial:
    _, found = index.search(questions.rows, _depth(questions.own))
    found = _without(questions.own, found)
    exact = questions.nearest
    there = exact >= 0  # a small matrix has fewer than ten
    hits = (exact[:, :, None] == found[:, None, :]).any(2) & there
    recalls = hits.sum(1).double() / there.sum(1).clamp(min=1)
    # Recall of most queries is 1, so the interval is of a mean of values in [0, 1].
    interval = metrics.student_interval(recalls)
    mean = recalls.mean().item()
    low, high = interval if interval is not None else (mean, mean)
    return Trial(index.spec, mean, (low, high), _milliseconds(index, questions), index.num_bytes())


def _milliseconds(index: VectorIndex, questions: Questions) -> float:
    """Median over queries that come one by one."""
    seconds = []
    for query in questions.rows[:50]:
        start = time.perf_counter()
        index.search(query[None], NUM_NEIGHBORS)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))
