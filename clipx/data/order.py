"""The order of the data as a pure function: (seed, position) -> (shard, sample). No I/O, no state,
no ranks.

Positions 0, 1, 2 ... name every sample that training will ever see. Epoch e is the positions [e*N,
(e+1)*N) of a corpus of N samples, and position p belongs to stream p mod S. Each epoch permutes the
shards, lays them end to end and cuts that line into S ranges, one for each stream; inside a range,
samples are shuffled within windows, which begin elsewhere in each stream: so streams do not all ask
for new shards at once. So

- global batch k is the positions [k*G, (k+1)*G): the same *set* for any number of ranks and
workers;
- every sample comes once per epoch, and what an epoch leaves over fills the next batch together
with the next epoch;
- rank r of R takes the positions p with p mod R == r. Where R divides S, those are R-th parts of
the streams, and the rank touches only the shards of its own ranges.

Randomness comes from a counter-based mixer (SplitMix64), so any position costs the same: nothing is
replayed, and no permutation is held in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_FEISTEL_ROUNDS = 6
Line = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Shards in an epoch's order, end of each on the line of samples, the epoch's key."""


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

    A Feistel network over pairs of digits to the base ceil(sqrt(length)), walked until it lands
    inside (Black and Rogaway, 2002): all but 2 / sqrt(length) of the numbers land at once.
    """
    out = np.array(index, dtype=np.uint64)
    length = np.broadcast_to(np.asarray(length, dtype=np.uint64), out.shape)
    key = np.broadcast_to(np.asarray(key, dtype=np.uint64), out.shape)
    base = np.ceil(np.sqrt(length.astype(np.float64))).astype(np.uint64)
    with np.errstate(over="ignore"):
        out = _feistel(out, base, key)
        while (todo := np.flatnonzero(out >= length)).size:
            out[todo] = _feistel(out[todo], base[todo], key[todo])
    return out.astype(np.int64)


def _feistel(value: np.ndarray, base: np.ndarray, key: np.ndarray) -> np.ndarray:
    left, right = value // base, value % base
    for turn in range(_FEISTEL_ROUNDS):
        left, right = right, (left + mix(right ^ (key + np.uint64(turn))) % base) % base
    return left * base + right


def batch_positions(k: int, global_batch_size: int, *, rank: int, world_size: int) -> np.ndarray:
    """(B,) int64 positions of this rank's part of global batch k."""
    assert global_batch_size % world_size == 0, "checked at the door"
    return np.arange(k * global_batch_size + rank, (k + 1) * global_batch_size, world_size)


@dataclass(frozen=True)
class Located:
    """Where positions lie: (P,) int64 each, in the order of the positions asked for."""

    shard: np.ndarray
    sample: np.ndarray


class Order:
    """The order over shards of the given sizes.

    sizes: samples in each shard; seed: the run's; streams: S; window: samples that are shuffled
    together in a stream
    """

    def __init__(
        self, sizes: Sequence[int] | np.ndarray, *, seed: int, streams: int, window: int
    ) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.seed, self.streams, self.window = seed, streams, window
        self.epoch_samples = int(self.sizes.sum())
        self._lines: dict[int, Line] = {}
        assert self.epoch_samples > 0, "the caller refuses an empty corpus"

    def locate(self, positions: np.ndarray) -> Located:
        """positions: (P,) int64, any order, any epochs."""
        positions = np.asarray(positions, dtype=np.int64)
        epoch = positions // self.epoch_samples
        if len(positions) and epoch.min() == epoch.max():  # nearly always: ten times as fast
            return self._locate(positions, int(epoch[0]))
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        for e in np.unique(epoch):
            here = epoch == e
            found = self._locate(positions[here], int(e))
            shard[here], sample[here] = found.shard, found.sample
        return Located(shard, sample)

    def _locate(self, positions: np.ndarray, epoch: int) -> Located:
        order, ends, key = self._line(epoch)
        place = self._place_in_line(positions - epoch * self.epoch_samples, epoch, key)
        slot = np.searchsorted(ends, place, side="right")
        shard = order[slot]
        return Located(shard, place - (ends[slot] - self.sizes[shard]))

    def _place_in_line(self, place: np.ndarray, epoch: int, key: np.ndarray) -> np.ndarray:
        """Where each of an epoch's positions (from 0) lies among its N samples, laid end to end."""
        total, streams, window = self.epoch_samples, self.streams, self.window
        # Streams take turns (position mod S), so in an epoch their lengths differ by one at most;
        # `turn` is how many come before this one, counted from the epoch's first position.
        turn = place % streams
        stream = (turn + epoch * total) % streams
        length = (total - turn + streams - 1) // streams
        first = turn * (total // streams) + np.minimum(turn, total % streams)
        i = place // streams
        with np.errstate(over="ignore"):
            stream_key = mix(key ^ stream.astype(np.uint64))
            early = (stream_key % np.uint64(window)).astype(np.int64)  # the first window's cut
            block = (i + early) // window
            block_key = mix(stream_key + block.astype(np.uint64))
        begin = np.maximum(block * window - early, 0)
        end = np.minimum((block + 1) * window - early, length)
        return first + begin + shuffled(i - begin, end - begin, block_key)

    def _line(self, epoch: int) -> Line:
        """Made anew for each order and epoch, and two are kept: two epochs meet in a batch."""
        line = self._lines.get(epoch)
        if line is None:
            order = np.argsort(hash_of(self.seed, epoch, np.arange(len(self.sizes))), kind="stable")
            line = (order, np.cumsum(self.sizes[order]), hash_of(self.seed, epoch))
            self._lines = dict([*self._lines.items()][-1:]) | {epoch: line}
        return line

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.sizes)

    def replacement(self, position: int, attempt: int, shard: int) -> tuple[int, int]:
        """(shard, sample) that stands in for a bad one of `shard`: a function of the position, so
        all reruns agree."""
        pick = int(hash_of(self.seed, position, attempt, 0xBAD)[0] % np.uint64(self.epoch_samples))
        found = int(np.searchsorted(self._ends, pick, side="right"))
        return found, pick - int(self._ends[found] - self.sizes[found])


class Mixture:
    """Orders side by side in fixed proportions: each goes through epochs of its own.

    In every stream, each BLOCK samples hold a fixed number of each order's, in shuffled places. The
    i-th that a stream takes of an order is the i-th of that order's own stream, so a mixture is as
    exact as its parts: no sample is lost or repeated within an epoch of its own order.

    Shards are numbered through: those of the second order follow those of the first.
    """

    BLOCK = 10_000

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], *, seed: int) -> None:
        (self.streams,) = {order.streams for order in orders}
        self.orders, self.seed = tuple(orders), seed
        self.epoch_samples = sum(order.epoch_samples for order in orders)
        self.quota = quotas(weights, self.BLOCK)
        self._last = np.cumsum(self.quota)
        counts = [len(order.sizes) for order in orders]
        self.first_shard = np.cumsum([0, *counts])

    def locate(self, positions: np.ndarray) -> Located:
        """positions: (P,) int64, any order."""
        positions = np.asarray(positions, dtype=np.int64)
        i, stream = np.divmod(positions, self.streams)
        block, slot = np.divmod(i, self.BLOCK)
        slot = shuffled(slot, np.array(self.BLOCK), hash_of(self.seed, 0x313, stream, block))
        part = np.searchsorted(self._last, slot, side="right")
        own = block * self.quota[part] + slot - (self._last - self.quota)[part]
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(part):
            here = part == number
            found = self.orders[number].locate(own[here] * self.streams + stream[here])
            shard[here] = found.shard + self.first_shard[number]
            sample[here] = found.sample
        return Located(shard, sample)

    def replacement(self, position: int, attempt: int, shard: int) -> tuple[int, int]:
        """As `Order.replacement`, of the same order: bad samples do not shift the proportions."""
        part = int(np.searchsorted(self.first_shard, shard, side="right")) - 1
        first = int(self.first_shard[part])
        found, sample = self.orders[part].replacement(position, attempt, shard - first)
        return first + found, sample


def quotas(weights: Sequence[float], total: int) -> np.ndarray:
    """Integers in the proportion of the weights that add up to `total`, by largest remainder."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]] += 1
    return whole


def corpus_digest(shards: Iterable[tuple[str, str]]) -> str:
    """SHA-1 of (shard name, shard digest) in order: what a run must find again to resume
    exactly."""
    return hashlib.sha1(repr(list(shards)).encode()).hexdigest()
