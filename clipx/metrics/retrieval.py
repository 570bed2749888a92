"""Ranks of matching pairs among all images and captions, without the matrix of their scores.

A pair is a caption and its image. For each pair it is counted how many images of other pairs lie
at least as close to the caption, and how many captions of other images to the image. Recall at any
k, the median rank and mean average precision follow from these counts, so the memory is that of
the embeddings and one block of scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.metrics.similarity import row_ids

IMAGES, CAPTIONS = 1024, 8192
"""Rows and columns of the block of scores that is held at a time."""


@dataclass(frozen=True)
class PairRanks:
    """Counted over the M captions of N images; ties count against the pair.

    closer_images: (M,) int64, other images that lie as close to the caption as its own, or closer
    closer_captions: (M,) int64, other images' captions that lie as close to the caption's image
    owner: (M,) int64 from 0 on, not decreasing: the image of each caption
    """

    closer_images: Tensor
    closer_captions: Tensor
    owner: Tensor

    def text_to_image(self) -> Tensor:
        """(M,) rank from 1 of each caption's image."""
        return self.closer_images + 1

    def image_to_text(self) -> Tensor:
        """(N,) rank from 1 of the best of each image's captions."""
        num_images = int(self.owner[-1]) + 1
        best = torch.full((num_images,), torch.iinfo(torch.int64).max)
        return best.scatter_reduce(0, self.owner, self.closer_captions, "amin") + 1

    def image_average_precision(self) -> Tensor:
        """(N,) for each image the precision at the rank of each of its captions, averaged."""
        order = self.closer_captions.argsort(stable=True)
        order = order[self.owner[order].argsort(stable=True)]  # by image, then by rank
        count = torch.bincount(self.owner)
        first = (count.cumsum(0) - count)[self.owner]
        place = torch.arange(len(self.owner)) - first + 1  # among the captions of the image
        precision = place / (place + self.closer_captions[order]).double()
        return (
            torch.zeros(len(count), dtype=torch.float64).index_add_(0, self.owner, precision)
            / count
        )


def blocks_of(num_images: int) -> list[range]:
    """The rows that `count_closer` works on at a time."""
    starts = range(0, num_images, IMAGES)
    return [range(start, min(start + IMAGES, num_images)) for start in starts]


def count_closer(
    image: Tensor,
    text: Tensor,
    owner: Tensor,
    blocks: Iterable[range] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """`closer_images` and `closer_captions` of `PairRanks`, as far as these blocks of images tell.
    Those of all blocks add up.

    image: (N, D); text: (M, D); owner: (M,) as in PairRanks, every image has a caption
    """
    count = torch.bincount(owner, minlength=len(image))
    end = count.cumsum(0)
    own = _own_scores(image, text, owner, end, device)
    image_ids, text_ids = row_ids(image), row_ids(text)
    closer = torch.zeros(2, len(text), dtype=torch.int64)
    for rows in blocks_of(len(image)) if blocks is None else blocks:
        here = image[rows.start : rows.stop].to(device)
        first, last = int(end[rows.start] - count[rows.start]), int(end[rows.stop - 1])
        place_owner = owner[first:last] - rows.start
        thresholds = _by_image(own[first:last], place_owner, len(rows), torch.inf)
        own_ids = _by_image(text_ids[first:last], place_owner, len(rows), -1)
        found = torch.zeros_like(thresholds)
        for start in range(0, len(text), CAPTIONS):
            chunk = slice(start, min(start + CAPTIONS, len(text)))
            scores = here @ text[chunk].to(device).T
            matches = torch.arange(
                max(chunk.start, first), max(chunk.start, first, min(chunk.stop, last))
            )
            matched = (owner[matches] - rows.start, matches - start)
            scores[matched] = -torch.inf
            above = torch.empty_like(scores)  # float sums are many times faster than those of bool
            torch.ge(scores, own[chunk].to(device), out=above)
            _count_ties(above, image_ids[rows.start : rows.stop], image_ids[owner[chunk]], matched)
            closer[0, chunk] += above.sum(0).long().cpu()
            for number in range(thresholds.shape[1]):
                torch.ge(scores, thresholds[:, number, None].to(device), out=above)
                _count_ties(above, own_ids[:, number], text_ids[chunk], matched)
                found[:, number] += above.sum(1).cpu()
        closer[1, first:last] = found[thresholds < torch.inf].long()
    return closer[0], closer[1]


def _count_ties(
    above: Tensor, ids: Tensor, column_ids: Tensor, matched: tuple[Tensor, Tensor]
) -> None:
    """Set those of the (B, M) comparisons to 1 that are between equal embeddings: their scores may
    differ by rounding, since own scores and others' come from products of different shapes.

    ids, column_ids: (B,), (M,) of what is compared; matched: rows and columns of matching pairs
    """
    if not torch.isin(ids, column_ids).any():
        return
    equal = ids[:, None] == column_ids[None, :]
    equal[matched] = False
    above.masked_fill_(equal.to(above.device), 1.0)


def _own_scores(
    image: Tensor, text: Tensor, owner: Tensor, end: Tensor, device: torch.device | str
) -> Tensor:
    """(M,) similarity of each caption to its image, by a matmul as the others are."""
    out, first = [], 0
    for rows in blocks_of(len(image)):
        last = int(end[rows.stop - 1])
        here = image[rows.start : rows.stop].to(device)
        for start in range(first, last, CAPTIONS):
            stop = min(start + CAPTIONS, last)
            scores = here @ text[start:stop].to(device).T
            out.append(scores[owner[start:stop] - rows.start, torch.arange(stop - start)].cpu())
        first = last
    return torch.cat(out)


def _by_image(values: Tensor, owner: Tensor, num_images: int, fill: float) -> Tensor:
    """(num_images, most captions of one): values of an image's captions, filled up."""
    count = torch.bincount(owner, minlength=num_images)
    place = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]
    out = torch.full((num_images, int(count.max())), fill, dtype=values.dtype)
    out[owner, place] = values
    return out
