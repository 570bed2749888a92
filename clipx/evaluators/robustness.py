"""Zero-shot accuracy on corrupted pictures (arXiv:1903.12261), relative to clean ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.data.decode import pixels_of
from clipx.evaluators.classifier import Templates, classifier, nearest_class_hits
from clipx.evaluators.corruptions import CORRUPTIONS, corrupt, fitted_picture
from clipx.evaluators.distributed import embed_images
from clipx.evaluators.labeled_set import LabeledConfig
from clipx.evaluators.zero_shot import ZeroShot
from clipx.types import ImageTextEncoder, Result, Setting, UserError


@config
class Config(LabeledConfig):
    """A set of images with classes."""

    templates: Templates = None
    """As of zero_shot."""
    corruptions: list[str] = Field(default_factory=lambda: list(CORRUPTIONS), min_length=1)
    """Kinds of corruption, by their names in corruptions.py."""
    severities: list[Annotated[int, Field(ge=1, le=5)]] = Field(
        default_factory=lambda: [1, 2, 3, 4, 5], min_length=1
    )
    """Of each corruption; 5 is the strongest."""
    limit: int | None = Field(default=None, ge=1)
    """Images, evenly spaced over the set; null: all."""
    seed: int = Field(default=0, ge=0)
    """Of the noise."""

    def build(self) -> Robustness:
        return Robustness(self)


class Robustness:
    def __init__(self, settings: Config) -> None:
        for name in settings.corruptions:
            if name not in CORRUPTIONS:
                raise UserError(f"corruption {name!r} is none of {', '.join(CORRUPTIONS)}")
        self.settings = settings
        zero_shot = ZeroShot(settings, settings.templates)
        self.templates = zero_shot.templates
        self.set = zero_shot.set.evenly_spaced(settings.limit)

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        weights = classifier(encoder, self.set.names, self.templates, setting)
        images = self.set.images
        features = self.set.features(encoder, setting)
        clean = nearest_class_hits(features, weights, self.set.label)

        def corrupted_image(name: str, severity: int, number: int) -> Tensor:
            picture = fitted_picture(images.image(number), encoder)
            # Draws depend on the seed and the key, not on ranks or order.
            key = zlib.crc32(f"{images.keys[number]}/{name}/{severity}".encode())
            random = np.random.default_rng((self.settings.seed, key))
            return pixels_of(corrupt(picture, name, severity, random))

        corrupted: dict[str, Tensor] = {}
        table = []
        for name in self.settings.corruptions:
            by_severity = []
            for severity in self.settings.severities:
                read = partial(corrupted_image, name, severity)
                features = embed_images(encoder, read, images.keys, setting)
                hits = nearest_class_hits(features, weights, self.set.label)
                by_severity.append(hits)
                row = {"corruption": name, "severity": severity}
                table.append(row | metrics.rate_row("top1", hits, clusters=images.clusters))
            # Per image, because severities of one image are not independent samples.
            corrupted[f"{name}-top1"] = torch.stack(by_severity).mean(0)
        return robustness_result(clean, corrupted, table, images.keys, images.clusters)


def robustness_result(
    clean: Tensor,
    corrupted: dict[str, Tensor],
    table: list[dict[str, Any]],
    keys: Sequence[str],
    clusters: Tensor | None = None,
) -> Result:
    """clean: (N,) hits; corrupted: metric of a corruption -> (N,) share of severities with a hit;
    clusters: (N,) as in Result"""
    result = Result(keys=keys, tables={"severities": table}, clusters=clusters)
    mean = torch.stack(list(corrupted.values())).mean(0)
    for name, values in {"clean-top1": clean, "corrupted-top1": mean, **corrupted}.items():
        metrics.add_rate(result, name, values)
    if clean.any():  # else the ratio has no meaning
        relative = result.metrics["corrupted-top1"] / result.metrics["clean-top1"]
        # Clean and corrupted hits are of the same images, so the ratio has an interval of its own.
        interval = metrics.ratio_interval(mean, clean, clusters)
        result.add("relative-top1", relative, interval)
    result.add("num_samples", len(clean))
    return result
