"""clipx: exact, resumable CLIP pretraining that is small enough to read.

import clipx

model = clipx.load("runs/demo")
image = model.encode_image("cat.png")                        # (1, D) float32, unit norm
text = model.encode_text(["a red car", "a cat"])             # (2, D)
clipx.zero_shot(model, "cat.png", ["cat", "dog"])            # (1, 2) probabilities
hits = clipx.Index.open("embeddings/demo").search(text="a red car", k=10)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipx.embed import Encoder, load
    from clipx.evaluators.zero_shot import zero_shot
    from clipx.search.query import Index

__all__ = ["Encoder", "Index", "load", "zero_shot"]

_HOMES = {
    "Encoder": "clipx.embed",
    "Index": "clipx.search.query",
    "load": "clipx.embed",
    "zero_shot": "clipx.evaluators.zero_shot",
}


def __getattr__(name: str) -> Any:
    """Import torch only when it is needed: `clipx --help` answers at once."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'clipx' has no attribute {name!r}")
