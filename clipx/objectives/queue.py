"""Rows of earlier steps as further negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipx.types import Negatives, Pool


class PairQueue(nn.Module):
    """The newest `size` pairs of features of earlier steps, over all ranks, without gradient
    (arXiv:1912.06798; arXiv:1911.05722 without its second encoder).

    All ranks hold the same rows, in the order in which one process would have added them, so any
    rank can write the checkpoint.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._rows: dict[str, Tensor] = {}

    def negatives(self, ids: Tensor | None, device: torch.device) -> Negatives | None:
        """Rows to use beside a batch with these ids; None if the queue is empty, or its rows have
        other kinds of ids, so that it is unknown which of them are negatives."""
        if not self._rows:
            return None
        for name, rows in self._rows.items():
            self._rows[name] = rows.to(device)  # a state that was loaded is on the CPU
        past_ids = self._rows.get("ids")
        if ids is None:
            return Negatives(self._rows["image"], self._rows["text"])
        if past_ids is None or past_ids.shape[1] != ids.shape[1]:
            return None
        return Negatives(self._rows["image"], self._rows["text"], past_ids)

    def push(self, image: Tensor, text: Tensor, ids: Tensor | None, pool: Pool) -> None:
        """Add this rank's rows. All ranks take part."""
        new = {"image": pool.gather(image), "text": pool.gather(text)}
        if ids is not None:
            new["ids"] = pool.gather(ids)
        # One row that is not finite would spoil the loss of every step until it leaves the queue.
        if not (new["image"].isfinite().all() & new["text"].isfinite().all()):
            return
        past = self._rows
        for name, rows in new.items():
            # Resumed with other kinds of ids, or another width: start anew.
            if name not in past or len(past) != len(new) or past[name].shape[1:] != rows.shape[1:]:
                past = {}
        self._rows = {}
        for name, rows in new.items():  # first in, first out
            all_rows = torch.cat([past[name], rows]) if past else rows
            self._rows[name] = all_rows[-self.size :]

    def get_extra_state(self) -> dict[str, Tensor]:
        return dict(self._rows)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._rows = {name: rows[-self.size :] for name, rows in state.items()}
