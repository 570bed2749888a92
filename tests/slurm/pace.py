"""An evaluator that measures nothing and sleeps: so that a test can stop a run in its middle."""

from __future__ import annotations

import time
from pathlib import Path

from clipx.config import config
from clipx.types import ImageTextEncoder, Result, Setting


@config
class Config:
    path: str
    """File with the seconds to sleep; read anew each time."""
    every: str = "5 steps"

    def build(self) -> Pace:
        return Pace(Path(self.path))


class Pace:
    def __init__(self, path: Path) -> None:
        self.path = path

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        time.sleep(float(self.path.read_text()))
        return Result({})
