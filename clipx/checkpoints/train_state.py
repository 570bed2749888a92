"""The contents of a checkpoint that only training needs, and the reading of its small files."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.types import UserError

PARTS = ("optimizer", "random", "scaler", "objective")
"""Fields of `Training` in training.pt."""


_REQUIRED = ("step", "position", "fingerprint", "corpus_digest")
"""Entries of state.json that every version wrote. A default would be a wrong value."""


class LaterVersion(UserError):
    """A complete checkpoint of a later version. Falling back to an earlier checkpoint of the same
    run would lose steps, and that one would be as unreadable."""


@dataclass(frozen=True)
class TrainState:
    """The progress of training. Everything else follows from it, the config and the corpus.

    position: number of samples trained on, which is also the next position of the data order
    fingerprint: sum over all samples trained on of a hash of (position, key), mod 2^63; it does not
        depend on their order
    skipped_steps: with a loss or gradient that was not finite
    overflowed_steps: with a gradient beyond float16's range
    clamped_steps: in which the temperature was clamped, since the last log line
    """

    step: int = 0
    position: int = 0
    fingerprint: int = 0
    corpus_digest: str = ""
    skipped_steps: int = 0
    overflowed_steps: int = 0
    nonfinite_in_a_row: int = 0
    clamped_steps: int = 0

    def on_rank(self, *, is_main: bool) -> TrainState:
        """The state that a rank continues with: rank 0 has the sum of all ranks' fingerprints."""
        return self if is_main else replace(self, fingerprint=0)


@dataclass(frozen=True)
class Training:
    """The part of a checkpoint that only training needs, on the CPU.

    optimizer: its state_dict, with this rank's `Part`s in place of sharded tensors
    random: of each rank; scaler, objective: empty where a run has none
    ema: the averages of the weights by name, None where a run keeps none
    """

    optimizer: dict[str, Any]
    random: list[dict[str, Any]]
    scaler: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory."""

    path: Path
    state: TrainState
    weights: dict[str, Tensor]
    training: Training


def read_state(path: Path) -> TrainState:
    """The state.json of a checkpoint. Raises LaterVersion, OSError and ValueError."""
    entries = json.loads((path / "state.json").read_text())
    if not isinstance(entries, dict):
        raise ValueError(f"state.json holds {type(entries).__name__} instead of an object")
    # Later versions may add entries, whose meaning this one cannot know.
    known = {field.name: field.default for field in fields(TrainState)}
    _refuse_unknown(path, "state.json", set(entries) - set(known))
    if missing := [name for name in _REQUIRED if name not in entries]:
        raise ValueError(f"state.json has no {', '.join(missing)}")
    for name, value in entries.items():
        # type(), not isinstance: true is no step.
        right_type = type(value) is type(known[name])
        if not right_type or (isinstance(value, int) and not 0 <= value < 1 << 63):
            raise ValueError(f"state.json: {name} is {str(value)[:40]!r}")
    return TrainState(**entries)


def training_parts(path: Path) -> dict[str, Any]:
    """The content of training.pt: the fields of `Training`, without the optimizer's tensors. Raises
    LaterVersion, ValueError, and any exception of torch.load for a broken file."""
    try:
        parts = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load the file with weights_only=False, which runs code.
        raise ValueError("training.pt is broken, or holds more than tensors and numbers") from error
    if isinstance(parts, dict) and "pool" in parts:
        # Before objectives had a state, the queue of earlier pairs was the pool's.
        queue = parts.pop("pool")
        parts["objective"] = {"queue._extra_state": queue} if queue else {}
    if not isinstance(parts, dict) or not set(PARTS) <= set(parts):
        raise ValueError(f"training.pt does not hold {', '.join(PARTS)}")
    _refuse_unknown(path, "training.pt", {str(name) for name in set(parts) - set(PARTS)})
    optimizer = parts["optimizer"]
    types = {"optimizer": dict, "random": list, "scaler": dict, "objective": dict}
    for name, type_ in types.items():
        if not isinstance(parts[name], type_):
            raise ValueError(f"training.pt: {name} is {type(parts[name]).__name__}")
    if not isinstance(optimizer.get("state"), dict):
        raise ValueError("training.pt: the optimizer has no state")
    if not isinstance(optimizer.get("param_groups"), list):
        raise ValueError("training.pt: the optimizer has no param_groups")
    return parts


def _refuse_unknown(path: Path, file: str, names: set[str]) -> None:
    if names:
        raise LaterVersion(
            f"checkpoint {path} cannot be read: {file} has {', '.join(sorted(names))}, which this "
            "version of clipx does not know; go on with the version that wrote it (version.json)"
        )
