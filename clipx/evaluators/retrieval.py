"""Cross-modal retrieval: find the caption of an image among all captions, and the image of a
caption among all images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators._sets import batches, read_set
from clipx.types import Encoder, UserError


@config
class Config:
    """A folder in CLIP_benchmark's webdataset layout, with captions one a line in `.txt`."""

    path: str
    every: str | None = None
    """How often in training, as a duration; null: at the end only."""

    def build(self) -> Retrieval:
        return Retrieval(Path(self.path))


class Retrieval:
    def __init__(self, path: Path) -> None:
        self.path = path

    def evaluate(self, encoder: Encoder) -> dict[str, float]:
        image, captions = [], []
        for part in batches(read_set(self.path, "txt"), 256):
            image.append(encoder.encode_image([pixels for pixels, _ in part]))
            captions += [[line for line in text.splitlines() if line.strip()] for _, text in part]
        if not captions or not all(captions):
            raise UserError(f"test set {self.path} has an image without a caption, or no image")
        owner = torch.tensor([row for row, texts in enumerate(captions) for _ in texts])
        text = encoder.encode_text([t for texts in captions for t in texts])
        return retrieval_metrics(torch.cat(image), text, owner)


def retrieval_metrics(image: Tensor, text: Tensor, owner: Tensor) -> dict[str, float]:
    """image: (N, D); text: (M, D); owner: (M,) index of the image that each caption describes."""
    scores = image @ text.T
    match = owner[None, :] == torch.arange(len(image))[:, None]
    out: dict[str, float] = {}
    for direction, s, m in (("image_to_text", scores, match), ("text_to_image", scores.T, match.T)):
        for k in (1, 5, 10):
            out[f"{direction}_R@{k}"] = metrics.recall_at_k(s, m, k)
        out[f"{direction}_median_rank"] = metrics.median_rank(s, m)
    return out | {"num_samples": len(image)}
