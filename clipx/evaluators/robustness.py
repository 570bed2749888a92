"""Zero-shot accuracy on corrupted pictures (arXiv:1903.12261), relative to clean ones."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.data.decode import pixels_of
from clipx.evaluators._classes import LabeledSet, classifier
from clipx.evaluators._corruptions import CORRUPTIONS
from clipx.evaluators._means import add_mean, add_value, zero_shot_hits
from clipx.evaluators._ranks import embed_images
from clipx.evaluators.zero_shot import ZeroShot
from clipx.types import Encoder, Result, Setting, UserError


@config
class Config:
    """A set of images with classes, as of zero_shot."""

    path: str
    split: str | None = None
    """Folder of the split; null: `test` or `val` where there is one."""
    classes: str | None = None
    templates: str | None = None
    corruptions: list[str] = Field(default_factory=lambda: list(CORRUPTIONS), min_length=1)
    severities: list[Annotated[int, Field(ge=1, le=5)]] = Field(
        default_factory=lambda: [1, 2, 3, 4, 5], min_length=1
    )
    limit: int | None = Field(default=None, ge=1)
    """Images, evenly spaced over the set; null: all."""
    seed: int = Field(default=0, ge=0)
    every: str | None = None

    def build(self) -> Robustness:
        return Robustness(self)


class Robustness:
    def __init__(self, settings: Config) -> None:
        unknown = [name for name in settings.corruptions if name not in CORRUPTIONS]
        if unknown:
            raise UserError(f"corruption {unknown[0]!r} is none of {', '.join(CORRUPTIONS)}")
        self.settings = settings
        found = ZeroShot(
            Path(settings.path),
            split=settings.split,
            classes=settings.classes,
            templates=settings.templates,
        )
        self.templates = found.templates
        self.set = evenly_spaced(found.set, settings.limit)

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        weights = classifier(encoder, self.set.names, self.templates, setting)

        def hits(image: Callable[[int], Tensor]) -> Tensor:
            features = embed_images(encoder, image, self.set.images.keys, setting)
            return zero_shot_hits(features, weights, self.set.label)

        clean = hits(self.set.images.image)
        found, table = {}, []
        for name in self.settings.corruptions:
            parts = []
            for severity in self.settings.severities:
                part = hits(lambda n, c=name, s=severity: self.corrupted(n, encoder, c, s))
                parts.append(part)
                row = {"corruption": name, "severity": severity, "top1": part.mean().item()}
                table.append(row | metrics.ends(metrics.share_interval(part)))
            found[f"{name}-top1"] = torch.stack(parts).mean(0)
        return robustness_result(clean, found, table, list(self.set.images.keys))

    def corrupted(self, number: int, encoder: Encoder, name: str, severity: int) -> Tensor:
        """(3, size, size) uint8: what the model would see, corrupted. Draws come from (seed, key),
        not from ranks or order."""
        pixels = encoder.fit(self.set.images.image(number))
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        key = zlib.crc32(f"{self.set.images.keys[number]}/{name}/{severity}".encode())
        random = np.random.default_rng((self.settings.seed, key))
        return pixels_of(CORRUPTIONS[name](image, severity, random))


def robustness_result(
    clean: Tensor, found: dict[str, Tensor], table: list[dict[str, object]], keys: list[str]
) -> Result:
    """clean: (N,) hits; found: by corruption (N,) share of the severities at which it is hit"""
    result = Result({}, keys=keys, tables={"severities": table})
    corrupted = torch.stack(list(found.values())).mean(0)
    for name, values in {"clean-top1": clean, "corrupted-top1": corrupted, **found}.items():
        add_mean(result, name, values)
    if clean.any():
        relative = result.metrics["corrupted-top1"] / result.metrics["clean-top1"]
        add_value(result, "relative-top1", relative, metrics.ratio_interval(corrupted, clean))
    add_value(result, "num_samples", len(clean))
    return result


def evenly_spaced(labeled: LabeledSet, limit: int | None) -> LabeledSet:
    """At most `limit` samples, from the first to the last."""
    if limit is None or limit >= len(labeled):
        return labeled
    return labeled.subset(torch.arange(limit) * len(labeled) // limit)
