"""Cross-modal retrieval: find the captions of an image among all captions, and the image of a
caption among all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators._ranks import embed_images, embed_texts, together
from clipx.evaluators._sets import Images, read_shards, split_folder
from clipx.metrics.retrieval import blocks_of
from clipx.types import Encoder, Result, Setting, UserError


@config
class Config:
    """A folder in CLIP_benchmark's webdataset layout, with captions one a line in `.txt`."""

    path: str
    split: str | None = None
    """Folder of the split; null: `test` or `val` where there is one."""
    every: str | None = None
    """How often in training, as a duration; null: at the end only."""

    def build(self) -> Retrieval:
        return Retrieval(read_captioned(Path(self.path), self.split))


@dataclass(frozen=True)
class CaptionedSet:
    """captions: of each image at least one; owner: (M,) the image of each"""

    images: Images
    captions: Sequence[str]
    owner: Tensor


def read_captioned(path: Path, split: str | None = None) -> CaptionedSet:
    """Raises UserError."""
    images, texts = read_shards(split_folder(path, split), "txt")
    captions = [[line for line in text.splitlines() if line.strip()] for text in texts]
    for key, own in zip(images.keys, captions, strict=True):
        if not own:
            raise UserError(f"test set {path} has an image without a caption, {key}")
    owner = torch.tensor([row for row, own in enumerate(captions) for _ in own])
    return CaptionedSet(images, [text for own in captions for text in own], owner)


class Retrieval:
    def __init__(self, captioned: CaptionedSet) -> None:
        self.set = captioned

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        images = self.set.images
        image = embed_images(encoder, images.image, images.keys, setting)
        text = embed_texts(encoder, self.set.captions, setting)
        ranks = pair_ranks(image, text, self.set.owner, setting)
        return retrieval_result(ranks, images.keys)


def pair_ranks(image: Tensor, text: Tensor, owner: Tensor, setting: Setting) -> metrics.PairRanks:
    """The blocks of scores are shared out over the ranks, and their counts added.

    image: (N, D); text: (M, D); owner: (M,)
    """
    ranks = setting.ranks
    mine = blocks_of(len(image))[ranks.rank :: ranks.world_size]
    parts = together(
        ranks,
        lambda: torch.stack(metrics.count_closer(image, text, owner, mine, device=setting.device)),
    )
    images, captions = torch.stack(parts).sum(0)
    return metrics.PairRanks(images, captions, owner)


def retrieval_result(ranks: metrics.PairRanks, keys: Sequence[str]) -> Result:
    """keys: of the N images"""
    by_image, by_text, owner = ranks.image_to_text(), ranks.text_to_image(), ranks.owner
    samples = _samples("image_to_text", by_image) | _samples("text_to_image", by_text)
    samples["image_to_text_mAP"] = ranks.image_average_precision()
    samples["text_to_image_mAP"] = 1 / by_text.double()
    medians = {"image_to_text_median_rank": by_image, "text_to_image_median_rank": by_text}
    count = torch.bincount(owner)
    # The captions of an image are no independent trials: their share of hits is one value an image,
    # and images are what a bootstrap draws.
    shares = {n: v if len(v) == len(keys) else _by_image(v, owner) for n, v in samples.items()}

    def interval(name: str) -> tuple[float, float]:
        values = shares[name]
        if len(samples[name]) == len(keys):
            return metrics.mean_interval(values)
        return metrics.bootstrap_interval(
            lambda i: ((values[i] * count[i]).sum() / count[i].sum()).item(), len(keys)
        )

    return Result(
        metrics={n: v.mean().item() for n, v in samples.items()}
        | {n: _median(r) for n, r in medians.items()}
        | {"num_samples": len(keys), "num_captions": len(owner)},
        intervals={name: interval(name) for name in samples}
        | {n: metrics.median_interval(r, len(keys)) for n, r in medians.items()},
        keys=list(keys),
        samples=shares,
    )


def _samples(direction: str, rank: Tensor) -> dict[str, Tensor]:
    return {f"{direction}_R@{k}": (rank <= k).double() for k in (1, 5, 10)}


def _by_image(values: Tensor, owner: Tensor) -> Tensor:
    """(M,) of captions -> (N,) mean over each image's."""
    count = torch.bincount(owner)
    return torch.zeros(len(count), dtype=values.dtype).index_add_(0, owner, values) / count


def _median(rank: Tensor) -> float:
    return rank.double().quantile(0.5).item()
