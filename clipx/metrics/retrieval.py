"""Ranks of matching pairs among all images and captions, without the matrix of their scores.

A pair is a caption and its image. For each pair, count the images of other pairs that lie at least
as close to the caption, and the captions of other images that lie at least as close to the image.
Recall at any k, the median rank and mean average precision follow from these counts, so the memory
is that of the embeddings and one block of scores.

Where captions that are equal are right with each of their images (`text_ids`), these images do not
compete with one another for the caption, nor the caption's copies for an image, and copies of a
wrong caption count once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.metrics.similarity import row_ids

IMAGES_PER_BLOCK = 1024
CAPTIONS_PER_BLOCK = 8192


@dataclass(frozen=True)
class PairRanks:
    """Counts over the M captions of N images; ties count against the pair.

    closer_images: (M,) int64, other images at least as close to the caption as its own
    closer_captions: (M,) int64, other images' captions at least as close to the caption's image
    owner: (M,) int64 number of each caption's image, from 0 on, not decreasing
    text_ids: (M,) int64, equal where captions are; None if a caption is right with its image alone
    """

    closer_images: Tensor
    closer_captions: Tensor
    owner: Tensor
    text_ids: Tensor | None = None

    def text_to_image(self) -> Tensor:
        """(M,) rank from 1 of each caption's image, of several images that of the best."""
        if self.text_ids is None:
            return self.closer_images + 1
        return _least(self.closer_images, self.text_ids)[self.text_ids] + 1

    def image_to_text(self) -> Tensor:
        """(N,) rank from 1 of the best of each image's captions."""
        return _least(self.closer_captions, self.owner) + 1

    def image_average_precision(self) -> Tensor:
        """(N,) mean over each image's captions of the precision at the caption's rank."""
        return _average_precision(self.closer_captions, self.owner)

    def caption_average_precision(self) -> Tensor:
        """(M,) mean over each caption's images of the precision at the image's rank."""
        if self.text_ids is None:
            return 1 / (self.closer_images + 1).double()  # of one image, one over its rank
        return _average_precision(self.closer_images, self.text_ids)[self.text_ids]

    def caption_units(self) -> Tensor:
        """(M,) int64 image that stands for each caption: its own, or for equal captions, whose
        results are one and the same, the first one that has it."""
        if self.text_ids is None:
            return self.owner
        return _least(self.owner, self.text_ids)[self.text_ids]


def _least(values: Tensor, group: Tensor) -> Tensor:
    """(G,) the least of each group's values. values: (M,) int64; group: (M,) from 0 on"""
    least = torch.full((int(group.max()) + 1,), torch.iinfo(torch.int64).max)
    return least.scatter_reduce(0, group, values, "amin")


def _average_precision(closer: Tensor, group: Tensor) -> Tensor:
    """(G,) mean over each group's right answers of the precision at the rank of each.

    closer: (M,) int64 wrong answers at least as close as each; group: (M,) from 0 on, without gaps
    """
    # Right answers by group, and within a group from the best to the worst.
    order = closer.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    group = group[order]
    count = torch.bincount(group)
    first = (count.cumsum(0) - count)[group]
    place = torch.arange(len(group)) - first + 1  # from 1, among the group's answers
    # Down to this answer: so many right ones, and so many wrong ones before it.
    rank = place + closer[order]
    precision = place / rank.double()
    return torch.bincount(group, precision) / count


def image_blocks(num_images: int) -> list[range]:
    """The blocks of images for `PairCounter.count`."""
    starts = range(0, num_images, IMAGES_PER_BLOCK)
    return [range(num_images)[start : start + IMAGES_PER_BLOCK] for start in starts]


class PairCounter:
    """The counts of PairRanks, one block of images after another. The counts of several counters
    may be added."""

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        owner: Tensor,
        device: torch.device | str = "cpu",
        *,
        text_ids: Tensor | None = None,
    ) -> None:
        """image: (N, D); text: (M, D); owner, text_ids: (M,) as in PairRanks, each image has a
        caption"""
        self.image = image
        self.text = text
        self.owner = owner
        # By default no two captions are equal.
        self.equal_ids = torch.arange(len(text)) if text_ids is None else text_ids
        # Only the first of equal captions is counted.
        self.is_repeated = torch.ones(len(text), dtype=torch.bool)
        self.is_repeated[_least(torch.arange(len(text)), self.equal_ids)] = False
        self.device = device
        num_captions = torch.bincount(owner, minlength=len(image))
        self.last = num_captions.cumsum(0)  # (N,) end of each image's captions, exclusive
        self.first = self.last - num_captions
        self.image_ids = row_ids(image)
        self.text_ids = row_ids(text)
        self.closer_images = torch.zeros(len(text), dtype=torch.int64)
        self.closer_captions = torch.zeros(len(text), dtype=torch.int64)

        # (M,) similarity of each caption to its image. By a product of matrices, like the scores
        # to compare it with: a sum of products by row would be rounded in another way.
        own_scores = []
        for block in image_blocks(len(image)):
            rows = image[block.start : block.stop].to(device)
            last = int(self.last[block.stop - 1])
            for start in range(int(self.first[block.start]), last, CAPTIONS_PER_BLOCK):
                stop = min(start + CAPTIONS_PER_BLOCK, last)
                scores = rows @ text[start:stop].to(device).T
                own_row = owner[start:stop] - block.start
                own_scores.append(scores[own_row, torch.arange(stop - start)].cpu())
        self.own_score = torch.cat(own_scores)

    def count(self, block: range) -> None:
        """Compare the images of a block with all captions."""
        image = self.image[block.start : block.stop].to(self.device)
        image_ids = self.image_ids[block.start : block.stop]
        first = int(self.first[block.start])
        last = int(self.last[block.stop - 1])

        # Column k has the k-th caption of each image; an infinite threshold stands for none.
        row = self.owner[first:last] - block.start
        column = torch.arange(first, last) - self.first[self.owner[first:last]]
        shape = (len(block), int(column.max()) + 1)
        thresholds = torch.full(shape, torch.inf)
        thresholds[row, column] = self.own_score[first:last]
        own_ids = torch.full(shape, -1)
        own_ids[row, column] = self.text_ids[first:last]
        closer = torch.zeros(shape, dtype=torch.int64)

        for start in range(0, len(self.text), CAPTIONS_PER_BLOCK):
            stop = min(start + CAPTIONS_PER_BLOCK, len(self.text))
            text_ids = self.text_ids[start:stop]
            owner = self.owner[start:stop]
            scores = image @ self.text[start:stop].to(self.device).T
            # Captions of an image, and captions equal to one of them, do not compete.
            pairs = self._right_pairs(block, start, stop)
            scores[pairs] = -torch.inf

            # Floats, because their sums are many times faster than those of bool.
            above = torch.empty_like(scores)
            own_score = self.own_score[start:stop].to(self.device)
            torch.ge(scores, own_score, out=above)
            _set_ties(above, image_ids, self.image_ids[owner], pairs)
            self.closer_images[start:stop] += above.sum(0).long().cpu()
            # Images have a handful of captions each, so this loop is short.
            for k in range(shape[1]):
                threshold = thresholds[:, k, None].to(self.device)
                torch.ge(scores, threshold, out=above)
                _set_ties(above, own_ids[:, k], text_ids, pairs)
                above[:, self.is_repeated[start:stop]] = 0
                closer[:, k] += above.sum(1).long().cpu()
        self.closer_captions[first:last] += closer[row, column]

    def _right_pairs(self, block: range, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows of a block of images, and columns of the captions start ... stop - 1, of all pairs
        of an image and a caption that is equal to one of its own."""
        first = int(self.first[block.start])
        last = int(self.last[block.stop - 1])
        own, by_id = self.equal_ids[first:last].sort(stable=True)
        wanted = self.equal_ids[start:stop]
        # Captions of the block that are equal to each column: a range of those sorted by id.
        low = torch.searchsorted(own, wanted)
        count = torch.searchsorted(own, wanted, right=True) - low
        columns = torch.arange(stop - start).repeat_interleave(count)
        offset = torch.arange(len(columns)) - (count.cumsum(0) - count)[columns]
        captions = first + by_id[low[columns] + offset]
        return self.owner[captions] - block.start, columns


def _set_ties(above: Tensor, ids: Tensor, column_ids: Tensor, pairs: tuple[Tensor, Tensor]) -> None:
    """Set the comparisons of equal embeddings to 1: the scores of a tie may differ by rounding,
    since own scores and others come from products of different shapes.

    above: (B, M) float; ids: (B,) and column_ids: (M,) of the compared embeddings
    pairs: rows and columns of matching pairs, which are not compared
    """
    if not torch.isin(ids, column_ids).any():
        return
    equal = ids[:, None] == column_ids[None, :]
    equal[pairs] = False
    above.masked_fill_(equal.to(above.device), 1.0)
