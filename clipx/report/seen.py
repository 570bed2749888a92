"""What the newest model of a run makes of the test sets that its config names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx import embed, metrics
from clipx.embed import Encoder
from clipx.eval_verb import chosen_evaluators
from clipx.evaluators import embedding_health, retrieval, zero_shot
from clipx.evaluators.classifier import classifier
from clipx.evaluators.distributed import embed_images, embed_texts
from clipx.evaluators.labeled_set import LabeledSet
from clipx.evaluators.test_sets import CaptionedSet, read_captioned
from clipx.training.precision import compute_dtype
from clipx.types import Setting, UserError

LIMIT = 10_000
"""Images of a set that are looked at, evenly spaced over it."""


@dataclass(frozen=True)
class Classified:
    """What a model takes the images of a set for.

    probability: (N, C), at the temperature that the model learned
    predicted: (N,) int64, as `clipx eval` counts it, ties against the model
    total: images of the set, of which N were looked at
    """

    name: str
    labeled: LabeledSet
    probability: Tensor
    predicted: Tensor
    total: int

    @property
    def accuracy(self) -> float:
        return metrics.weighted_mean(self.predicted == self.labeled.label)


@dataclass(frozen=True)
class Paired:
    """image: (N, D); text: (M, D); total: images of the set, of which N were looked at"""

    name: str
    captioned: CaptionedSet
    image: Tensor
    text: Tensor
    total: int

    @property
    def first_caption(self) -> Tensor:
        """(N,) which of the M captions is the first of each image."""
        return torch.tensor(self.captioned.first_captions())


@dataclass(frozen=True)
class Seen:
    """faults: why something is not there, of the `model`, the `classes` or the `pairs`"""

    facts: list[tuple[str, str]] = field(default_factory=list)
    classified: list[Classified] = field(default_factory=list)
    paired: list[Paired] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    source: str = ""

    def missing(self, part: str, otherwise: str, *, there: bool) -> list[str]:
        """Lines on what a section lacks. there: it has something to show"""
        found = [*self.faults.get("model", []), *self.faults.get(part, [])]
        return found if found or there else [otherwise]


def look(run: Path, say: Callable[[str], None]) -> Seen:
    """What cannot be read is said in `faults`: a report shows what there is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        encoder = embed.load(run, device=device, dtype=compute_dtype("auto", device))
    except UserError as error:
        return Seen(faults={"model": [str(error)]})
    parameters = sum(p.numel() for p in encoder.model.parameters())
    told = [("Checkpoint", encoder.source), ("Parameters", f"{parameters:,}")]
    seen = Seen(told, source=encoder.source)
    try:
        evaluators = chosen_evaluators(str(run), [], None, [])
    except UserError as error:
        seen.faults["model"] = [str(error)]
        return seen
    setting = Setting(device=device)
    for name, config in in_order(evaluators):
        say(f"looking at {name}")
        try:
            if isinstance(config, zero_shot.Config):
                seen.classified.append(classify(name, config, encoder, setting))
            else:
                seen.paired.append(pair(name, config, encoder, setting))
        except UserError as error:
            part = "classes" if isinstance(config, zero_shot.Config) else "pairs"
            seen.faults.setdefault(part, []).append(f"{name}: {error}")
    return seen


def in_order(evaluators: Any) -> list[tuple[str, Any]]:
    """Those whose sets can be looked at, each set of captions once."""
    chosen = [
        (name, config)
        for kind in (zero_shot.Config, retrieval.Config, embedding_health.Config)
        for name, config in evaluators.items()
        if isinstance(config, kind)
    ]
    out, known = [], set()
    for name, config in chosen:
        place = (isinstance(config, zero_shot.Config), config.path, config.split)
        if place[0] or place not in known:
            out.append((name, config))
        known.add(place)
    return out


def classify(name: str, config: zero_shot.Config, encoder: Encoder, setting: Setting) -> Classified:
    built = config.build()
    labeled = built.set.evenly_spaced(LIMIT)
    weights = classifier(encoder, labeled.names, built.templates, setting)
    ids = metrics.row_ids(weights)
    scores = metrics.similarities(labeled.features(encoder, setting), weights, ids)
    # Of the scores, not of their probabilities, which may be equal where scores are not.
    predicted = metrics.predictions(scores, labeled.label, ids)
    probability = (encoder.logit_scale * scores).softmax(1)
    return Classified(name, labeled, probability, predicted, len(built.set))


def pair(
    name: str,
    config: retrieval.Config | embedding_health.Config,
    encoder: Encoder,
    setting: Setting,
) -> Paired:
    whole = read_captioned(Path(config.path), config.split)
    captioned = some(whole, evenly(len(whole.images), LIMIT))
    images = captioned.images
    image = embed_images(encoder, images.image, images.keys, setting)
    text = embed_texts(encoder, captioned.captions, setting)
    return Paired(name, captioned, image, text, len(whole.images))


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0 ... count - 1, from the first on: not chosen by how well they do."""
    return [n * count // most for n in range(most)] if count > most else list(range(count))


def some(captioned: CaptionedSet, rows: Sequence[int]) -> CaptionedSet:
    """The images of these rows, which increase, and their captions."""
    images = captioned.images
    if len(rows) == len(images):
        return captioned
    place = {row: n for n, row in enumerate(rows)}
    kept = [m for m, row in enumerate(captioned.owner.tolist()) if row in place]
    return CaptionedSet(
        images.subset(rows),
        [captioned.captions[m] for m in kept],
        torch.tensor([place[int(captioned.owner[m])] for m in kept]),
    )
