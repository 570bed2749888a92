"""clipx: exact, resumable CLIP pretraining that is small enough to read.

import clipx

model = clipx.load("runs/demo")                              # device="auto", dtype="bfloat16"
image = model.encode_image("cat.png")                        # (1, D) float32, unit norm
text = model.encode_text(["a red car", "a cat"])             # (2, D)
model.similarity(image, text)                                # (1, 2) cosines
clipx.zero_shot(model, "cat.png", ["cat", "dog"])            # (1, 2) probabilities
hits = clipx.Index.open("embeddings/demo").search(text="a red car", k=10)
run = clipx.train("configs/run/demo_tiny.yaml", "duration=100 steps")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipx.embed import Encoder, load
    from clipx.evaluators.zero_shot import zero_shot
    from clipx.search.query import Hit, Index, Term
    from clipx.training.interactive import FinishedRun, train
    from clipx.types import EmbeddingError, Stopped, UserError

__version__ = "0.1.0"

__all__ = [
    "EmbeddingError",
    "Encoder",
    "FinishedRun",
    "Hit",
    "Index",
    "Stopped",
    "Term",
    "UserError",
    "__version__",
    "load",
    "train",
    "zero_shot",
]

_HOMES = {
    "EmbeddingError": "clipx.types",
    "Encoder": "clipx.embed",
    "FinishedRun": "clipx.training.interactive",
    "Hit": "clipx.search.query",
    "Index": "clipx.search.query",
    "Stopped": "clipx.types",
    "Term": "clipx.search.query",
    "UserError": "clipx.types",
    "load": "clipx.embed",
    "train": "clipx.training.interactive",
    "zero_shot": "clipx.evaluators.zero_shot",
}


def __getattr__(name: str) -> Any:
    """Import torch only when it is needed: `clipx --help` answers at once."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'clipx' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, which are imported when they are first used."""
    return sorted(__all__)
