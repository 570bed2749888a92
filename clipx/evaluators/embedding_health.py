"""Whether the embedding space is in use: alignment, uniformity, effective rank, the gap between
images and texts, dead dimensions and hubs, with alarms for a collapse."""

from __future__ import annotations

from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.captioned_set import CaptionedConfig
from clipx.evaluators.distributed import embed_images, embed_texts, on_main
from clipx.metrics import embedding
from clipx.types import ImageTextEncoder, Result, Setting, UserError

NEIGHBORS = 10
# A trained CLIP has a uniformity of about -2 to -3.5 and uses tens of dimensions or more; an
# untrained one has mean norms of 0.9 and above. Alarms are for values that no working model has.
MAX_MEAN_NORM = 0.95
MAX_UNIFORMITY = -0.2
MIN_RANK = 3.0
MAX_DEAD_SHARE = 0.5
MAX_HUBNESS = 10.0
MIN_IMAGES = 32  # a few images have a low rank and a long mean in any space


@config
class Config(CaptionedConfig):
    """A set of images with captions, of which the first of each image is used."""

    def build(self) -> EmbeddingHealth:
        return EmbeddingHealth(self)


class EmbeddingHealth:
    def __init__(self, settings: Config) -> None:
        captioned = settings.read()
        if len(captioned.images) < 2:
            raise UserError(
                f"test set {captioned.images.path} has one image: there is no space to look at"
            )
        self.images = captioned.images
        first_captions = captioned.first_captions().tolist()
        self.captions = [captioned.captions[number] for number in first_captions]

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        image = embed_images(encoder, self.images.image, self.images.keys, setting)
        text = embed_texts(encoder, self.captions, setting)
        return on_main(setting, health, image, text, self.images.clusters)


def health(image: Tensor, text: Tensor, clusters: Tensor | None = None) -> Result:
    """image, text: (N, D) matching rows, at least two; clusters: (N,) as in Result"""
    result = Result()
    distances = embedding.squared_distances(image, text)
    result.add("alignment", distances.mean().item(), metrics.student_interval(distances, clusters))
    # The interval of the gap takes pairs as independent, so there is none for clusters.
    gap_interval = None if clusters is not None else embedding.modality_gap_interval(image, text)
    result.add("modality_gap", embedding.modality_gap(image, text), gap_interval)

    # No intervals: the following shift with the number of images, and none is a mean.
    k = min(NEIGHBORS, len(image))
    _, neighbors = metrics.nearest_neighbors(text, image, k)
    result.add("hubness", embedding.hubness(neighbors, len(image)))
    for name, features in (("image", image), ("text", text)):
        result.add(f"{name}_uniformity", embedding.uniformity(features))
        result.add(f"{name}_effective_rank", embedding.effective_rank(features))
        result.add(f"{name}_mean_norm", embedding.mean_norm(features))
        result.add(f"{name}_dead_share", embedding.dead_dimensions(features))
    result.add("num_samples", len(image))
    if len(image) >= MIN_IMAGES:
        result.alarms.extend(alarms(result.metrics))
    return result


def alarms(values: dict[str, float]) -> list[str]:
    """values: metric -> value"""
    messages = []
    for name in ("image", "text"):
        rank = values[f"{name}_effective_rank"]
        norm = values[f"{name}_mean_norm"]
        uniformity = values[f"{name}_uniformity"]
        dead_share = values[f"{name}_dead_share"]
        if rank < MIN_RANK or uniformity > MAX_UNIFORMITY or norm > MAX_MEAN_NORM:
            messages.append(
                f"{name} embeddings collapse: effective rank {rank:.1f}, uniformity "
                f"{uniformity:.2f}, norm of the mean {norm:.2f}; lower the learning rate, lengthen "
                "the warmup, or look for samples that are all alike"
            )
        if dead_share > MAX_DEAD_SHARE:
            messages.append(
                f"{dead_share:.0%} of the {name} dimensions hardly vary: embed_dim may be smaller"
            )
    if values["hubness"] > MAX_HUBNESS:
        messages.append(
            f"hubness {values['hubness']:.1f}: a few images are found by most captions; "
            "look for blank or text-only images"
        )
    return messages
