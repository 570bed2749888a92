"""An order whose batches group samples of one concept, such as two of each class: a pure function
(seed, position) -> (shard, sample), as `data.order`.

Positions k * size ... k * size + size - 1 are a group: samples of one concept. An epoch has all
groups of all concepts in a shuffled order. A concept of n samples has ceil(n / size) groups in an
epoch; its samples, shuffled anew in each epoch, fill them one after the other. It follows that

- each sample comes at least once per epoch, and exactly once if its concept's n is a multiple of
  `size`;
- else the first samples of the shuffled concept also fill up its last group: of an odd concept in
  pairs, one sample comes twice, in two groups; a concept of one sample is its own partner;
- an epoch is the sum of size * ceil(n / size) positions;
- global batch k is the same set for any number of ranks and workers. Rank r of R takes the
  positions p with p mod R == r, so the members of a group are on several ranks: losses see all
  ranks.

Samples come from anywhere in the corpus, so there are neither streams nor windows, and a rank
reads all shards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipx.data.order import Located, hash_of, shuffled

_CONCEPT_KEY = 0x6C0  # separates the shuffling of concepts from that of groups
_REPLACEMENT_KEY = 0xBAD
SAME_CONCEPT_ATTEMPTS = 8
"""Replacements of a bad sample that are of its concept; later ones are of any, since all samples
of a concept may be bad."""


class GroupedOrder:
    """See `data.order.Order`.

    sizes: samples in each shard
    concepts: (N,) int64 number of each sample's concept, from 0 without gaps
    group_size: samples of a group
    """

    def __init__(
        self,
        sizes: Sequence[int] | np.ndarray,
        concepts: np.ndarray,
        *,
        seed: int,
        group_size: int,
    ) -> None:
        self.seed = seed
        self.group_size = group_size
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._shard_ends = np.cumsum(self._sizes)
        self._by_concept = np.argsort(concepts, kind="stable")  # numbers of samples
        self._counts = np.bincount(concepts)  # samples of each concept
        self._starts = np.cumsum(self._counts) - self._counts
        groups = -(-self._counts // group_size)  # of each concept, rounded up
        self._group_ends = np.cumsum(groups)
        self.num_groups = int(groups.sum())
        self.epoch_samples = self.num_groups * group_size
        assert len(concepts) == self._sizes.sum() > 0, "an empty corpus is refused before"
        assert self._counts.all(), "each number is a concept's"

    def describe(self) -> str:
        """A line for the log of a run."""
        num_samples = len(self._by_concept)
        num_single = int((self._counts == 1).sum())
        return (
            f"{len(self._counts):,} concepts in groups of {self.group_size}: an epoch has "
            f"{self.epoch_samples:,} positions for {num_samples:,} samples; {num_single:,} "
            "concepts have one sample, which is its own partner"
        )

    def locate(self, positions: np.ndarray) -> Located:
        """positions: (P,) int64, in any order, of any epochs"""
        positions = np.asarray(positions, dtype=np.int64)
        group, member = np.divmod(positions, self.group_size)
        epoch, concept, turn = self._concept_of(group)
        # The turn-th group of the concept has these of its samples, which are shuffled.
        count = self._counts[concept]
        place = (turn * self.group_size + member) % count
        key = hash_of(self.seed, _CONCEPT_KEY, epoch, concept)
        number = self._by_concept[self._starts[concept] + shuffled(place, count, key)]
        return self._located(number)

    def _concept_of(self, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(epoch, concept, which of the concept's groups) of groups, (P,) each."""
        epoch, slot = np.divmod(group, self.num_groups)
        slot = shuffled(slot, np.array(self.num_groups), hash_of(self.seed, epoch))
        concept = np.searchsorted(self._group_ends, slot, side="right")
        first = self._group_ends[concept - 1] * (concept > 0)
        return epoch, concept, slot - first

    def _located(self, number: np.ndarray) -> Located:
        shard = np.searchsorted(self._shard_ends, number, side="right")
        return Located(shard, number - (self._shard_ends - self._sizes)[shard])

    def replacement(self, position: int, attempt: int, shard: int) -> tuple[int, int]:
        """As `Order.replacement`: at first from the concept of the position."""
        del shard
        draw = int(hash_of(self.seed, position, attempt, _REPLACEMENT_KEY)[0])
        if attempt <= SAME_CONCEPT_ATTEMPTS:
            _, concepts, _ = self._concept_of(np.array([position // self.group_size]))
            concept = int(concepts[0])
            place = int(self._starts[concept]) + draw % int(self._counts[concept])
        else:
            place = draw % len(self._by_concept)
        located = self._located(self._by_concept[[place]])
        return int(located.shard[0]), int(located.sample[0])
