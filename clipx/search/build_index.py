"""Build the index of embeddings, with parameters that are measured against exact search."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clipx import metrics
from clipx.files import replacing, write_whole
from clipx.search.embeddings import Manifest, Modality
from clipx.search.vector_index import EFFORTS, Kind, Spec, VectorIndex, nearest_rows, spec_of
from clipx.types import Interval, UserError

NUM_NEIGHBORS = 10
NUM_QUERIES = 1000  # for the choice, and as many others to measure what was chosen
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
    queries: Tensor | None,
    *,
    kind: Kind | Literal["auto"] = "auto",
    recall: float = 0.95,
    max_bytes: int | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> Chosen:
    """The fastest index that finds the share `recall` of the exact nearest neighbors and needs at
    most `max_bytes` of memory. Raises UserError where none does.

    rows: (N, D) of unit norm; queries: (M, D), such as captions that look for images, or None for
    rows that look for others
    note: called with a line about each index that is built
    """
    first, second = _queries(rows, queries, seed)
    kinds: list[Kind] = [kind] if kind != "auto" else ["hnsw", "ivf", "ivfpq"]
    if kind == "exact" or (kind == "auto" and len(rows) <= EXACT_UP_TO):
        index = VectorIndex.build(Spec("exact"), rows)
        return Chosen(index, [], measure(index, second))
    trials = []
    best: tuple[Trial, VectorIndex] | None = None
    for each in kinds:
        spec = spec_of(each, len(rows), rows.shape[1])
        size = VectorIndex(spec, rows).num_bytes()
        if max_bytes is not None and size > max_bytes:
            note(f"{each}: {size / 2**20:,.0f} MiB, more than --memory; not built")
            continue
        start = time.perf_counter()
        built = VectorIndex.build(spec, rows, seed=seed)
        note(f"{each}: built in {time.perf_counter() - start:.0f} s")
        for effort in EFFORTS[each]:
            trial = measure(built.with_effort(effort), first)
            trials.append(trial)
            # Its lower bound, so that other queries will find as much.
            if trial.interval[0] >= recall:
                if best is None or trial.milliseconds < best[0].milliseconds:
                    best = (trial, built.with_effort(effort))
                break  # to try harder is slower
    if best is None:
        found = max((trial.recall for trial in trials), default=0.0)
        raise UserError(
            f"--recall {recall}: no index within the limits finds that much, the best "
            f"{found:.3f}; lower it, raise --memory, or use --kind exact"
        )
    return Chosen(best[1], trials, measure(best[1], second))


@dataclass(frozen=True)
class Questions:
    """Queries with their exact answers. rows: (Q, D); nearest: (Q, 10) rows of the matrix
    own: (Q,) row that a query is, which does not count as found; -1 for other queries"""

    rows: Tensor
    nearest: Tensor
    own: Tensor


def _queries(rows: np.ndarray, queries: Tensor | None, seed: int) -> tuple[Questions, Questions]:
    """Two sets without a query in common."""
    source = rows if queries is None else queries.numpy()
    count = min(2 * NUM_QUERIES, len(source) // 2 * 2)
    if count < 2:
        raise UserError(f"an index needs two vectors at least, not {len(rows)}")
    picked = np.random.default_rng(seed).choice(len(source), count, replace=False)
    both = []
    for numbers in (picked[: count // 2], picked[count // 2 :]):
        asked = torch.from_numpy(np.asarray(source[numbers], dtype=np.float32))
        own = torch.from_numpy(numbers) if queries is None else torch.full((len(numbers),), -1)
        both.append(Questions(asked, _without(own, nearest_rows(asked, rows, _depth(own))[1]), own))
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


def index_file(folder: Path, modality: Modality) -> Path:
    return folder / f"{modality}.index"


def about_file(folder: Path, modality: Modality) -> Path:
    return folder / f"{modality}_index.json"


def write_index(folder: Path, modality: Modality, chosen: Chosen, manifest: Manifest) -> None:
    """Write the index and what is known of it, and clip-retrieval's list of indices. Raises
    OSError."""
    path = index_file(folder, modality)
    about = about_file(folder, modality)
    about.unlink(missing_ok=True)  # until the index is there, the old one is not described
    if chosen.index.spec.kind == "exact":
        path.unlink(missing_ok=True)
    else:
        with replacing(path) as temporary:
            chosen.index.write(temporary)
    record: dict[str, Any] = {
        "spec": asdict(chosen.index.spec),
        "num_rows": len(chosen.index.rows),
        "model_digest": manifest.model_digest,
        "measured": _record(chosen.measured),
        "trials": [_record(trial) for trial in chosen.trials],
    }
    write_whole(about, json.dumps(record, indent=1) + "\n")
    paths = json.dumps({folder.resolve().name: str(folder.resolve())}, indent=1)
    write_whole(folder / "indices_paths.json", paths + "\n")


def _record(trial: Trial) -> dict[str, Any]:
    record = asdict(trial)
    record |= record.pop("spec")
    return record


def open_index(
    folder: Path, modality: Modality, manifest: Manifest, rows: np.ndarray
) -> VectorIndex:
    """The index of a folder; exact search if it has none. Raises UserError."""
    about = about_file(folder, modality)
    if not about.exists():
        return VectorIndex(Spec("exact"), rows)
    try:
        record = json.loads(about.read_text("utf-8"))
        spec = Spec(**record["spec"])
        digest = record["model_digest"]
        num_rows = record["num_rows"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{about} cannot be read: {error}; run `clipx index` again") from error
    if digest != manifest.model_digest or num_rows != len(rows):
        raise UserError(
            f"{about} belongs to {num_rows:,} other embeddings, or to those of another model; run "
            "`clipx index` again"
        )
    return VectorIndex.open(index_file(folder, modality), spec, rows)
