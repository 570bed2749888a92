"""Zero-shot classification: class names put into prompts are the classifier (arXiv:2103.00020,
3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from clipx import metrics
from clipx.config import config
from clipx.evaluators._sets import batches, lines, read_set
from clipx.types import Encoder, UserError


@config
class Config:
    """A folder in CLIP_benchmark's webdataset layout."""

    path: str
    every: str | None = None
    """How often in training, as a duration; null: at the end only."""

    def build(self) -> ZeroShot:
        return ZeroShot(Path(self.path))


class ZeroShot:
    def __init__(self, path: Path) -> None:
        self.class_names = lines(path / "classnames.txt")
        self.templates = lines(path / "zeroshot_classification_templates.txt")
        self.path = path

    def evaluate(self, encoder: Encoder) -> dict[str, float]:
        scores, label = self.scores(encoder)
        return {
            "zeroshot-top1": metrics.top_k_accuracy(scores, label, 1),
            "zeroshot-top5": metrics.top_k_accuracy(scores, label, 5),
            "zeroshot-mean_per_class_recall": metrics.mean_per_class_recall(
                scores.argmax(1), label, len(self.class_names)
            ),
            "num_samples": len(label),
        }

    def scores(self, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """((N, C) cosine similarities, (N,) labels)"""
        weights = classifier(encoder, self.class_names, self.templates)
        features, labels = [], []
        for part in batches(self.samples(), 256):
            features.append(encoder.encode_image([image for image, _ in part]))
            labels += [label for _, label in part]
        if not labels:
            raise UserError(f"test set {self.path} has no samples")
        return torch.cat(features) @ weights.T, torch.tensor(labels)

    def samples(self) -> Iterator[tuple[Tensor, int]]:
        """((3, H, W) uint8, class index) of each image. Raises UserError at a label without a class
        name."""
        for image, text in read_set(self.path, "cls"):
            if not text.strip().isdecimal() or int(text) >= len(self.class_names):
                raise UserError(
                    f"test set {self.path} has the label {text.strip()!r}, "
                    f"but classnames.txt names {len(self.class_names)} classes, from 0 on"
                )
            yield image, int(text)


def classifier(encoder: Encoder, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C, D) unit rows: for each class, the normalized mean of its normalized prompt embeddings."""
    wrong = [t for t in templates if "{c}" not in t and "{}" not in t]
    if wrong:
        raise UserError(
            f"prompt template {wrong[0]!r} has no place for the class name; "
            "write {c} where it belongs"
        )
    prompts = [
        t.replace("{c}", name).replace("{}", name) for name in class_names for t in templates
    ]
    embeddings = encoder.encode_text(prompts).view(len(class_names), len(templates), -1)
    return F.normalize(embeddings.mean(1), dim=-1)


def zero_shot(
    model: Encoder,
    images: object,
    class_names: Sequence[str],
    templates: Sequence[str] = ("{c}",),
) -> Tensor:
    """(N, C) probabilities of the classes for each image, at the temperature the model learned.

    images: whatever `model.encode_image` takes
    templates: prompts with {c} where the class name goes
    """
    weights = classifier(model, class_names, templates)
    return (model.logit_scale * model.encode_image(images) @ weights.T).softmax(-1)
