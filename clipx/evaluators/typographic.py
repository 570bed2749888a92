"""Typographic attack (Goh et al., Distill 2021): the name of another class is written across each
picture, and the model may read it instead of looking at the object."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.data.decode import pixels_of
from clipx.evaluators.classifier import Templates, classifier, nearest_class_hits
from clipx.evaluators.corruptions import fitted_picture
from clipx.evaluators.distributed import embed_images
from clipx.evaluators.labeled_set import LabeledConfig
from clipx.evaluators.zero_shot import ZeroShot
from clipx.types import ImageTextEncoder, Result, Setting


@config
class Config(LabeledConfig):
    """A set of images with classes."""

    templates: Templates = None
    """As of zero_shot."""
    limit: int | None = Field(default=None, ge=1)
    """Images, evenly spaced over the set; null: all."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of the class whose name is written."""

    def build(self) -> Typographic:
        return Typographic(self)


class Typographic:
    def __init__(self, settings: Config) -> None:
        zero_shot = ZeroShot(settings, settings.templates)
        self.templates = zero_shot.templates
        self.set = zero_shot.set.evenly_spaced(settings.limit)
        num_classes = len(self.set.names)
        generator = torch.Generator().manual_seed(settings.seed)
        # Any class but the picture's own.
        offset = torch.randint(1, num_classes, (len(self.set),), generator=generator)
        self.written = (self.set.label + offset) % num_classes

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        def attack(number: int) -> Tensor:
            """The model's view of an image, (3, size, size) uint8, with the other class on it."""
            picture = fitted_picture(images.image(number), encoder)
            word = self.set.names[int(self.written[number])]
            return pixels_of(written_on(picture, word))

        images = self.set.images
        weights = classifier(encoder, self.set.names, self.templates, setting)
        clean = self.set.features(encoder, setting)
        attacked = embed_images(encoder, attack, images.keys, setting)
        result = Result(keys=images.keys, clusters=images.clusters)
        label = self.set.label
        metrics.add_rate(result, "clean-top1", nearest_class_hits(clean, weights, label))
        metrics.add_rate(result, "attacked-top1", nearest_class_hits(attacked, weights, label))
        # The rest of the wrong answers are third classes.
        metrics.add_rate(result, "read_share", nearest_class_hits(attacked, weights, self.written))
        result.add("num_samples", len(self.set))
        return result


def written_on(image: Image.Image, text: str) -> Image.Image:
    """Black on a white label in the middle, as wide as the picture."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    width, height = image.size
    # Measure at 100 points, then scale to 90 % of the width, at most a quarter of the height.
    text_width = max(1.0, ImageFont.load_default(100.0).getbbox(text)[2])
    points = min(100 * 0.9 * width / text_width, height / 4)
    font = ImageFont.load_default(max(4.0, points))
    center = (width / 2, height / 2)
    box = draw.textbbox(center, text, font=font, anchor="mm")
    draw.rectangle(box, fill="white")
    draw.text(center, text, fill="black", font=font, anchor="mm")
    return image
