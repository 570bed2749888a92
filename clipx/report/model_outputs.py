"""Outputs of the newest model of a run on the test sets of its config."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx import embed, metrics
from clipx.embed import Encoder
from clipx.eval_verb import chosen_evaluators
from clipx.evaluators import embedding_health, retrieval, zero_shot
from clipx.evaluators.captioned_set import CaptionedConfig, CaptionedSet
from clipx.evaluators.classifier import classifier
from clipx.evaluators.distributed import embed_images, embed_texts
from clipx.evaluators.labeled_set import LabeledSet
from clipx.training.precision import compute_dtype
from clipx.types import Setting, UserError

MAX_IMAGES = 10_000  # of each set, evenly spaced


@dataclass(frozen=True)
class Classified:
    """Zero-shot classification of a test set.

    probability: (N, C), at the temperature that the model learned
    predicted: (N,) int64, as `clipx eval` counts it, ties against the model
    set_size: images of the set, of which N were classified
    """

    name: str
    labeled: LabeledSet
    probability: Tensor
    predicted: Tensor
    set_size: int


@dataclass(frozen=True)
class Paired:
    """Features of a test set of images with captions.

    image: (N, D)
    text: (M, D)
    set_size: images of the set, of which N were embedded
    """

    name: str
    captioned: CaptionedSet
    image: Tensor
    text: Tensor
    set_size: int

    @cached_property
    def first_caption(self) -> Tensor:
        """(N,) which of the M captions is the first of each image."""
        return self.captioned.first_captions()

    def caption_of(self, image: int) -> str:
        return self.captioned.captions[int(self.first_caption[image])]


@dataclass(frozen=True)
class ModelOutputs:
    """source: the checkpoint and its step, empty if no model can be loaded
    model_error: why there are no outputs at all
    class_errors, caption_errors: why there are none of some sets
    """

    source: str = ""
    num_parameters: int = 0
    classified: list[Classified] = field(default_factory=list)
    paired: list[Paired] = field(default_factory=list)
    model_error: str = ""
    class_errors: list[str] = field(default_factory=list)
    caption_errors: list[str] = field(default_factory=list)


def collect_outputs(run: Path) -> ModelOutputs:
    """Load the newest model and apply it to the test sets. Errors of the user become fields: a
    report shows what there is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # In the precision that `clipx eval` uses, so that both count the same images as right.
        encoder = embed.load(run, device=device, dtype=compute_dtype("auto", device))
    except UserError as error:
        return ModelOutputs(model_error=str(error))
    num_parameters = sum(parameter.numel() for parameter in encoder.model.parameters())
    try:
        evaluators = chosen_evaluators(str(run), [], None, [])
    except UserError as error:
        return ModelOutputs(encoder.source, num_parameters, model_error=str(error))

    # A set that was moved costs its own part of the page only.
    outputs = ModelOutputs(encoder.source, num_parameters)
    setting = Setting(device=device)
    for name, config in evaluators.items():
        if isinstance(config, zero_shot.Config):
            print(f"classifying {name}", file=sys.stderr)
            try:
                outputs.classified.append(classify(name, config, encoder, setting))
            except UserError as error:
                outputs.class_errors.append(f"{name}: {error}")

    # Retrieval first: embedding_health needs the same features, so a set of both is embedded once.
    embedded: list[Any] = []
    for kind in (retrieval.Config, embedding_health.Config):
        for name, config in evaluators.items():
            if not isinstance(config, kind):
                continue
            place = (config.path, config.split, config.source, config.caption_field)
            if place in embedded:
                continue
            embedded.append(place)
            print(f"embedding {name}", file=sys.stderr)
            try:
                outputs.paired.append(embed_pairs(name, config, encoder, setting))
            except UserError as error:
                outputs.caption_errors.append(f"{name}: {error}")
    return outputs


def classify(name: str, config: zero_shot.Config, encoder: Encoder, setting: Setting) -> Classified:
    evaluator = config.build()
    labeled = evaluator.set.evenly_spaced(MAX_IMAGES)
    weights = classifier(encoder, labeled.names, evaluator.templates, setting)
    ids = metrics.row_ids(weights)
    scores = metrics.similarities(labeled.features(encoder, setting), weights, ids)
    # From the scores: different scores may have the same probability in float32.
    predicted = metrics.predictions(scores, labeled.label, ids)
    probability = (encoder.scale * scores).softmax(1)
    return Classified(name, labeled, probability, predicted, len(evaluator.set))


def embed_pairs(name: str, config: CaptionedConfig, encoder: Encoder, setting: Setting) -> Paired:
    whole = config.read()
    captioned = whole.evenly_spaced(MAX_IMAGES)
    images = captioned.images
    image = embed_images(encoder, images.image, images.keys, setting)
    text = embed_texts(encoder, captioned.captions, setting)
    return Paired(name, captioned, image, text, len(whole.images))
