"""Mined negatives of images: k texts for each, beside its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clipx.models.dual_encoder import DualEncoder
from clipx.objectives.identities import caption_ids
from clipx.objectives.objective import Features, Views
from clipx.types import HardNegatives

_PADDING = 1


def negative_ids(views: Mapping[str, Tensor], *, pad_id: int) -> Views:
    """row_ids (B, 2) and column_ids (B, k, 2) int64. An image and a negative have one in common
    where the negative has the image's own caption, or only fills up a row with fewer than k.

    views: text (B, T), negative_text (B, k, T'), num_negatives (B,), see `Batches`
    """
    texts = views["negative_text"]
    num_rows, count = texts.shape[:2]
    own = torch.from_numpy(caption_ids(views["text"], pad_id=pad_id))
    of_texts = torch.from_numpy(caption_ids(texts.flatten(0, 1), pad_id=pad_id))
    is_padding = torch.arange(count) >= views["num_negatives"][:, None]
    return {
        "row_ids": torch.stack([own, torch.full_like(own, _PADDING)], 1),
        "column_ids": torch.stack([of_texts.view(num_rows, count), _PADDING * is_padding], 2),
    }


def embed_negatives(encoder: DualEncoder, views: Views) -> Features:
    """negatives (B, k, D) of unit norm, and their ids."""
    texts = views["negative_text"]
    embeddings = encoder.encode_text(texts.flatten(0, 1))
    return {
        "negatives": embeddings.unflatten(0, texts.shape[:2]),
        "row_ids": views["row_ids"],
        "column_ids": views["column_ids"],
    }


def hard_negatives(features: Features) -> HardNegatives | None:
    """For the loss; None without mined negatives."""
    if "negatives" not in features:
        return None
    return HardNegatives(
        features["negatives"].flatten(0, 1),
        features["row_ids"],
        features["column_ids"].flatten(0, 1),
    )
