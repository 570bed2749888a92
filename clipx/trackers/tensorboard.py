"""Event files for TensorBoard: `tensorboard --logdir runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipx.types import UserError


class TensorBoard:
    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """purge_step: events after it are hidden, which a resumed run writes again"""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "tensorboard=true needs TensorBoard: pip install 'clipx-train[track]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def log(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()
