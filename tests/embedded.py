"""Embeddings of a small corpus by a tiny model, as `clipx embed` makes them."""

from __future__ import annotations

from pathlib import Path

import small_checkpoints
import torch
from tiny_runs import MODEL

from clipx import cli
from clipx.models.dual_encoder import DualEncoder


def embed_corpus(root: Path, *settings: str, name: str = "out") -> Path:
    """The folder `name` below the root, with embeddings of root/corpus by random weights."""
    torch.manual_seed(0)
    model = small_checkpoints.save(root / "m", 1, model=DualEncoder(MODEL), model_json=MODEL)
    out = root / name
    cli.main(["embed", str(model), str(root / "corpus"), "--out", str(out), *settings])
    return out
