"""Whether the embedding space is in use: alignment, uniformity, effective rank, the gap between
images and texts, dead dimensions and hubs, with alarms for a collapse."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators._means import add_value
from clipx.evaluators._ranks import embed_images, embed_texts, main_only
from clipx.evaluators.retrieval import read_captioned
from clipx.metrics import embedding
from clipx.types import Encoder, Result, Setting, UserError

NEIGHBORS = 10
# A trained CLIP has a uniformity of about -2 to -3.5 and uses tens of dimensions or more; an
# untrained one has mean norms of 0.9 and above. Alarms are for what no working model shows.
MOST_MEAN_NORM, MOST_UNIFORMITY, LEAST_RANK, MOST_DEAD, MOST_HUBNESS = 0.95, -0.2, 3.0, 0.5, 10.0
FEWEST = 32
"""Images without which there is no alarm: a few have a low rank and a long mean in any space."""


@config
class Config:
    """A folder in CLIP_benchmark's webdataset layout, with captions one a line in `.txt`, of which
    the first of each image is used."""

    path: str
    split: str | None = None
    """Folder of the split; null: `test` or `val` where there is one."""
    every: str | None = None

    def build(self) -> EmbeddingHealth:
        return EmbeddingHealth(self)


class EmbeddingHealth:
    def __init__(self, settings: Config) -> None:
        captioned = read_captioned(Path(settings.path), settings.split)
        if len(captioned.images) < 2:
            raise UserError(f"test set {settings.path} has one image: there is no space to look at")
        self.images = captioned.images
        owner = captioned.owner
        first = torch.cat([torch.tensor([True]), owner[1:] != owner[:-1]])
        self.captions = [captioned.captions[n] for n in first.nonzero().flatten().tolist()]

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        image = embed_images(encoder, self.images.image, self.images.keys, setting)
        text = embed_texts(encoder, self.captions, setting)
        return main_only(setting.ranks, lambda: health(image, text))


def health(image: Tensor, text: Tensor) -> Result:
    """image, text: (N, D) matching rows, at least two"""
    k = min(NEIGHBORS, len(image))
    found = {
        "alignment": embedding.alignment(image, text),
        "modality_gap": embedding.modality_gap(image, text),
        "hubness": embedding.hubness(metrics.nearest_neighbors(text, image, k)[1], len(image)),
    }
    for name, features in (("image", image), ("text", text)):
        found |= {
            f"{name}_uniformity": embedding.uniformity(features),
            f"{name}_effective_rank": embedding.effective_rank(features),
            f"{name}_mean_norm": embedding.mean_norm(features),
            f"{name}_dead_share": embedding.dead_dimensions(features),
        }
    result = Result(found | {"num_samples": len(image)})
    squared = (image - text).double().square().sum(1)
    # The others have no interval: they shift with the number of images, and none is a mean.
    for name, interval in (
        ("alignment", metrics.student_interval(squared)),
        ("modality_gap", embedding.modality_gap_interval(image, text)),
    ):
        add_value(result, name, found[name], interval)
    if len(image) >= FEWEST:
        result.alarms.extend(alarms(found))
    return result


def alarms(found: dict[str, float]) -> list[str]:
    """What no working model shows."""
    out = []
    for name in ("image", "text"):
        rank, norm = found[f"{name}_effective_rank"], found[f"{name}_mean_norm"]
        uniformity, dead = found[f"{name}_uniformity"], found[f"{name}_dead_share"]
        if rank < LEAST_RANK or uniformity > MOST_UNIFORMITY or norm > MOST_MEAN_NORM:
            out.append(
                f"{name} embeddings collapse: effective rank {rank:.1f}, uniformity "
                f"{uniformity:.2f}, norm of the mean {norm:.2f}; lower the learning rate, lengthen "
                "the warmup, or look for samples that are all alike"
            )
        if dead > MOST_DEAD:
            out.append(f"{dead:.0%} of the {name} dimensions hardly vary: embed_dim may be smaller")
    if found["hubness"] > MOST_HUBNESS:
        out.append(
            f"hubness {found['hubness']:.1f}: a few images are found by most captions; "
            "look for blank or text-only images"
        )
    return out
