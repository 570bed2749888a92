"""The order of the data as a pure function: (seed, position) -> (shard, sample). No I/O, no state,
no ranks.

Positions 0, 1, 2 ... name every sample that training will ever see. Epoch e is the positions [e*N,
(e+1)*N) of a corpus of N samples, and position p belongs to stream p mod S. Each epoch permutes the
shards, lays them end to end and cuts that line into S ranges, one for each stream; inside a range,
samples are shuffled within windows. So

- global batch k is the positions [k*G, (k+1)*G): the same *set* for any number of ranks and
workers;
- every sample comes once per epoch, and what an epoch leaves over fills the next batch together
with the next epoch;
- rank r of R takes the positions p with p mod R == r. Where R divides S, those are R-th parts of
the streams, and
  the rank touches only the shards of its own ranges.

Randomness comes from a counter-based mixer (SplitMix64), so any position costs the same: nothing is
replayed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_FEISTEL_ROUNDS = 6


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64 finalizer (Steele et al., OOPSLA 2014): uint64 -> uint64, a bijection that looks
    random."""
    z = np.asarray(values, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_of(*values: int | np.ndarray) -> np.ndarray:
    """uint64 hash of integers or of equally long arrays of them. Wraps around silently, as it
    must."""
    with np.errstate(over="ignore"):
        state = np.zeros(1, dtype=np.uint64)
        for value in values:
            state = mix(state ^ mix(np.asarray(value).astype(np.uint64)))
    return state


def uniforms(seed: int, position: int | np.ndarray, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1): the draws of one sample, whoever loads it and whenever.

    position: an int, or (P, 1) of them for (P, count) draws
    """
    return (hash_of(seed, position, np.arange(count)) >> np.uint64(11)) * 2.0**-53


def shuffled(index: np.ndarray, length: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Image of `index` under a pseudo-random permutation of [0, length), elementwise; `key` picks
    the permutation.

    A Feistel network on the next even number of bits, walked until it lands inside (Black and
    Rogaway, 2002).
    """
    out = np.asarray(index, dtype=np.uint64).copy()
    length = np.broadcast_to(np.asarray(length, dtype=np.uint64), out.shape)
    key = np.broadcast_to(np.asarray(key, dtype=np.uint64), out.shape)
    bits = np.maximum(1, np.ceil(np.log2(np.maximum(length.astype(np.float64), 2)) / 2)).astype(
        np.uint64
    )
    todo = np.arange(len(out))
    with np.errstate(over="ignore"):
        while len(todo):
            out[todo] = _feistel(out[todo], bits[todo], key[todo])
            todo = todo[out[todo] >= length[todo]]
    return out.astype(np.int64)


def _feistel(value: np.ndarray, bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = value >> bits, value & mask
    for turn in range(_FEISTEL_ROUNDS):
        left, right = right, left ^ (mix(right ^ mix(key + np.uint64(turn))) & mask)
    return (left << bits) | right


def batch_positions(k: int, global_batch_size: int, *, rank: int, world_size: int) -> np.ndarray:
    """(B,) int64 positions of this rank's part of global batch k."""
    assert global_batch_size % world_size == 0, "checked at the door"
    return np.arange(k * global_batch_size + rank, (k + 1) * global_batch_size, world_size)


@dataclass(frozen=True)
class Located:
    """Where positions lie. All arrays have the length of the positions asked for."""

    epoch: np.ndarray
    shard: np.ndarray
    sample: np.ndarray


class Order:
    """The order over shards of the given sizes.

    sizes: samples in each shard; seed: the run's; streams: S; window: samples that are shuffled
    together in a stream
    """

    def __init__(
        self, sizes: list[int], *, seed: int, streams: int = 64, window: int = 20_000
    ) -> None:
        assert sizes and min(sizes) >= 0 and sum(sizes) > 0, "the caller refuses an empty corpus"
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.seed, self.streams, self.window = seed, streams, window
        self.epoch_samples = int(self.sizes.sum())

    def locate(self, positions: np.ndarray) -> Located:
        """positions: (P,) int64, any order, any epochs."""
        positions = np.asarray(positions, dtype=np.int64)
        epoch = positions // self.epoch_samples
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        for e in np.unique(epoch):
            here = epoch == e
            line = self._place_in_line(positions[here], int(e))
            order, ends = self._line(int(e))
            slot = np.searchsorted(ends, line, side="right")
            shard[here] = order[slot]
            sample[here] = line - (ends[slot] - self.sizes[order[slot]])
        return Located(epoch, shard, sample)

    def _place_in_line(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Place of each position among the N samples of its epoch, laid end to end."""
        total, streams = self.epoch_samples, self.streams
        first = epoch * total
        stream = positions % streams
        # Streams take turns (position mod S), so in an epoch their lengths differ by one at most;
        # `lead` is the
        # number of streams that come before this one counted from the epoch's first position.
        lead = (stream - first) % streams
        length = (total - lead + streams - 1) // streams
        begin = lead * (total // streams) + np.minimum(lead, total % streams)
        i = (positions - first - lead) // streams
        block = i // self.window
        block_length = np.minimum(length - block * self.window, self.window)
        key = hash_of(self.seed, epoch, stream, block)
        return begin + block * self.window + shuffled(i - block * self.window, block_length, key)

    @lru_cache(maxsize=2)  # noqa: B019 one Order lives as long as its process; two epochs meet in a batch
    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(shards in this epoch's order, end of each on the line of samples)."""
        order = np.argsort(hash_of(self.seed, epoch, np.arange(len(self.sizes))), kind="stable")
        return order, np.cumsum(self.sizes[order])

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """(shard, sample) that stands in for a bad sample: a function of the position, so all
        reruns agree."""
        pick = int(hash_of(self.seed, position, attempt, 0xBAD)[0] % np.uint64(self.epoch_samples))
        ends = np.cumsum(self.sizes)
        shard = int(np.searchsorted(ends, pick, side="right"))
        return shard, pick - int(ends[shard] - self.sizes[shard])


def corpus_digest(shards: list[tuple[str, str]]) -> str:
    """SHA-1 of (shard name, shard digest) in order: what a run must find again to resume
    exactly."""
    return hashlib.sha1(repr(shards).encode()).hexdigest()
