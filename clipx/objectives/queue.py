"""Rows of earlier steps as further negatives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from clipx.types import Negatives, Pool


class RowQueue(nn.Module):
    """The newest `size` rows of features of earlier steps, over all ranks, without gradient
    (arXiv:1911.05722; arXiv:1912.06798).

    All ranks hold the same rows, in the order in which one process would have added them, so any
    rank can write the checkpoint.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._rows: dict[str, Tensor] = {}
        self._rows_per_step = 1

    def metrics(self) -> dict[str, Tensor]:
        """For the log: `queue_age`, the steps since the oldest row was computed."""
        num_rows = max((len(rows) for rows in self._rows.values()), default=0)
        return {"queue_age": torch.tensor(math.ceil(num_rows / self._rows_per_step))}

    def rows(self, device: torch.device) -> dict[str, Tensor]:
        """(Q, ...) rows by name, oldest first; none before the first push."""
        for name, rows in self._rows.items():
            self._rows[name] = rows.to(device)  # a state that was loaded is on the CPU
        return self._rows

    def push(self, pool: Pool, **rows: Tensor | None) -> None:
        """Add this rank's rows, (B, ...) each. All ranks take part."""
        new = {name: pool.gather(tensor) for name, tensor in rows.items() if tensor is not None}
        # One row that is not finite would spoil the loss of every step until it leaves the queue.
        for tensor in new.values():
            if not tensor.isfinite().all():
                return
        self._rows_per_step = len(next(iter(new.values())))
        past = self._rows
        for name, tensor in new.items():
            # Resumed with other kinds of ids, or another width: start anew.
            is_other = name not in past or past[name].shape[1:] != tensor.shape[1:]
            if is_other or len(past) != len(new):
                past = {}
        self._rows = {}
        for name, tensor in new.items():  # first in, first out
            all_rows = torch.cat([past[name], tensor]) if past else tensor
            self._rows[name] = all_rows[-self.size :]

    def get_extra_state(self) -> dict[str, Tensor]:
        return dict(self._rows)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._rows = {name: rows[-self.size :] for name, rows in state.items()}


def past_pairs(queue: RowQueue, ids: Tensor | None, device: torch.device) -> Negatives | None:
    """The pairs of a queue with rows `image`, `text` and perhaps `ids`, to use beside a batch with
    these ids. None if the queue is empty, or its rows have other kinds of ids, so that it is
    unknown which of them are negatives."""
    rows = queue.rows(device)
    if not rows:
        return None
    if ids is None:
        return Negatives(rows["image"], rows["text"])
    past_ids = rows.get("ids")
    if past_ids is None or past_ids.shape[1] != ids.shape[1]:
        return None
    return Negatives(rows["image"], rows["text"], past_ids)
