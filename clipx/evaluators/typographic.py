"""Typographic attack: the name of another class is written across each picture (Goh et al., Distill
2021). How often does the model read instead of look?"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor

from clipx.config import config
from clipx.data.decode import pixels_of
from clipx.evaluators._classes import classifier
from clipx.evaluators._means import add_mean, zero_shot_hits
from clipx.evaluators._ranks import embed_images
from clipx.evaluators.robustness import evenly_spaced
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
    limit: int | None = Field(default=None, ge=1)
    """Images, evenly spaced over the set; null: all."""
    seed: int = Field(default=0, ge=0)
    every: str | None = None

    def build(self) -> Typographic:
        return Typographic(self)


class Typographic:
    def __init__(self, settings: Config) -> None:
        found = ZeroShot(
            Path(settings.path),
            split=settings.split,
            classes=settings.classes,
            templates=settings.templates,
        )
        self.templates = found.templates
        self.set = evenly_spaced(found.set, settings.limit)
        count = len(self.set.names)
        if count < 2:
            raise UserError(f"test set {settings.path} has one class: there is no other to write")
        generator = torch.Generator().manual_seed(settings.seed)
        others = torch.randint(1, count, (len(self.set),), generator=generator)
        self.written = (self.set.label + others) % count  # any class but the picture's own

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        weights = classifier(encoder, self.set.names, self.templates, setting)
        clean = self.set.features(encoder, setting)
        attacked = embed_images(
            encoder, lambda n: self.attacked(n, encoder), self.set.images.keys, setting
        )
        result = Result({"num_samples": len(clean)}, keys=list(self.set.images.keys))
        add_mean(result, "clean-top1", zero_shot_hits(clean, weights, self.set.label))
        add_mean(result, "attacked-top1", zero_shot_hits(attacked, weights, self.set.label))
        add_mean(result, "read_share", zero_shot_hits(attacked, weights, self.written))
        return result

    def attacked(self, number: int, encoder: Encoder) -> Tensor:
        """(3, size, size) uint8: what the model would see, with the other class written on it."""
        pixels = encoder.fit(self.set.images.image(number))
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        return pixels_of(written_on(image, self.set.names[int(self.written[number])]))


def written_on(image: Image.Image, text: str) -> Image.Image:
    """Black on a white label in the middle, as wide as the picture."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    width, height = image.size
    font = ImageFont.load_default(100.0)
    box = font.getbbox(text)
    points = min(100 * 0.9 * width / max(1.0, box[2]), height / 4)
    font = ImageFont.load_default(max(4.0, points))
    place = (width / 2, height / 2)
    around = draw.textbbox(place, text, font=font, anchor="mm")
    draw.rectangle(around, fill="white")
    draw.text(place, text, fill="black", font=font, anchor="mm")
    return image
