"""Retrieval as a person sees it: the images that a caption finds, and the captions of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipx.evaluators.test_sets import evenly_spaced
from clipx.report.formats import picture_uri
from clipx.report.model_outputs import Paired

NUM_QUERIES = 6  # in each direction
NUM_CANDIDATES = 5  # the best ones of a query


@dataclass(frozen=True)
class Candidate:
    """number: of the image or caption; rank: from 1; is_extra: not among the best, but the best of
    the right ones"""

    number: int
    rank: int
    score: float
    is_right: bool
    is_extra: bool


def retrieval_report(paired: Paired) -> dict[str, Any]:
    """Values for page.html.j2. by_caption: caption -> candidates with pictures; by_image: (picture,
    key of the image, candidates with captions)"""
    captioned = paired.captioned
    by_caption = []
    for number in evenly_spaced(len(paired.text), NUM_QUERIES):
        scores = paired.image @ paired.text[number]
        images = []
        for candidate in candidates(scores, captioned.right_images(number)):
            uri = picture_uri(captioned.images.shown(candidate.number))
            images.append((candidate, uri, paired.caption_of(candidate.number)))
        by_caption.append((captioned.captions[number], images))

    by_image = []
    # Images from between those captions, so that both directions show different pairs.
    num_images = len(paired.image)
    shift = num_images // NUM_QUERIES // 2
    for number in evenly_spaced(num_images, NUM_QUERIES):
        image = min(num_images - 1, number + shift)
        captions = []
        scores = paired.text @ paired.image[image]
        for candidate in candidates(scores, captioned.right_captions(image)):
            captions.append((candidate, captioned.captions[candidate.number]))
        uri = picture_uri(captioned.images.shown(image))
        by_image.append((uri, captioned.images.keys[image], captions))
    return {
        "name": paired.name,
        "num_images": num_images,
        "num_captions": len(paired.text),
        "set_size": paired.set_size,
        "by_caption": by_caption,
        "by_image": by_image,
    }


def candidates(scores: Tensor, is_right: Tensor) -> list[Candidate]:
    """The best candidates, and the best of the right ones if none of them is among these.

    scores: (N,)
    is_right: (N,) bool, at least one True
    """
    best = scores.topk(min(NUM_CANDIDATES, len(scores))).indices.tolist()
    ranked = list(enumerate(best, 1))
    if not is_right[best].any():
        best_right = int(scores.masked_fill(~is_right, -torch.inf).argmax())
        # Ties count against the right one, as in the metrics.
        is_above = (scores >= scores[best_right]) & ~is_right
        ranked.append((1 + int(is_above.sum()), best_right))
    chosen = []
    for rank, number in ranked:
        score = float(scores[number])
        chosen.append(Candidate(number, rank, score, bool(is_right[number]), rank > len(best)))
    return chosen
