"""Many short byte strings in little memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Strings:
    """A list of N byte strings as one blob and (N,) int64 ends: a few objects instead of N, so that
    it pickles fast and forked processes share its memory."""

    def __init__(self, items: Sequence[bytes]) -> None:
        self.blob = b"".join(items)
        self.ends = np.cumsum(np.fromiter(map(len, items), np.int64, len(items)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        assert 0 <= index < len(self.ends)
        start = self.ends[index - 1] if index else 0
        return self.blob[start : self.ends[index]]
