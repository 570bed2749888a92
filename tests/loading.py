"""Batches of a folder of shards, and when two of them are the same: for the tests of loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clipx.data.augment import Augmentation
from clipx.data.config import DataConfig
from clipx.data.loader import Batches, Loaded
from clipx.data.tokenizers import ClipBPE

TOKENIZER = ClipBPE()
TOKENS = 20


def batches(
    folder: Path | None,
    *,
    global_batch_size: int = 8,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    pad_to: int | None = None,
    augmentations: list[Augmentation] | None = None,
    needs_captions: bool = True,
    **settings: Any,
) -> Batches:
    """folder: of the shards; None where the settings name `sources`"""
    where = {} if folder is None else {"shards": str(folder)}
    config = DataConfig(**where, **{"workers": 0, "streams": 4, "window": 3, **settings})
    return Batches(
        config,
        config.corpus(config.open_sources(), seed=seed, needs_captions=needs_captions),
        TOKENIZER,
        image_size=12,
        context_length=TOKENS,
        pad_to=pad_to,
        augmentations=augmentations,
        global_batch_size=global_batch_size,
        rank=rank,
        world_size=world_size,
    )


def batch(source: Batches, k: int) -> Loaded:
    loaded = source[k]
    assert isinstance(loaded, Loaded), loaded
    return loaded


def same(a: Loaded, b: Loaded) -> bool:
    plain = ("keys", "positions", "state", "fingerprint", "bad")
    return (
        torch.equal(a.views["image"], b.views["image"])
        and torch.equal(a.views["text"], b.views["text"])
        and all(getattr(a, name) == getattr(b, name) for name in plain)
    )


def is_row_of(a: Loaded, row: int, b: Loaded, other: int) -> bool:
    """The same sample; both padded to TOKENS."""
    return (
        torch.equal(a.views["image"][row], b.views["image"][other])
        and torch.equal(a.views["text"][row], b.views["text"][other])
        and (a.keys[row], a.positions[row]) == (b.keys[other], b.positions[other])
    )
