"""The order of the data as a pure function: (seed, position) -> (shard, sample).

Positions 0, 1, 2 ... number all samples that training will ever see. In a corpus of N samples,
epoch e is the positions [e*N, (e+1)*N), and position p belongs to stream p mod S.

Each epoch permutes the shards, lays them end to end and cuts that line of samples into S ranges of
equal length, one for each stream. Inside a range, samples are shuffled within windows. The first
window has another length in each stream, so that streams do not open new shards all at once.

It follows that

- global batch k, positions [k*G, (k+1)*G), is the same *set* for any number of ranks and workers;
- each sample comes once per epoch, and batches span the end of an epoch;
- rank r of R reads the positions p with p mod R == r. Where R divides S, these are whole streams,
  and the rank reads only the shards of their ranges.

Random numbers come from a counter-based mixer, so that any position costs the same: nothing is
replayed, and no permutation is held in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_FEISTEL_ROUNDS = 6
_Epoch = tuple[np.ndarray, np.ndarray, np.ndarray]


def mix(values: np.ndarray) -> np.ndarray:
    """Map uint64 to uint64 by SplitMix64's finalizer (Steele et al., OOPSLA 2014), a bijection."""
    z = np.asarray(values, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_of(*values: int | np.ndarray) -> np.ndarray:
    """uint64 hash of integers, or of the rows of arrays that broadcast."""
    with np.errstate(over="ignore"):  # the mixer counts modulo 2^64
        state = np.zeros(1, dtype=np.uint64)
        for value in values:
            state = mix(state ^ mix(np.asarray(value).astype(np.uint64)))
    return state


def uniforms(seed: int, position: int | np.ndarray, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1): the random draws of the sample at a position.

    position: an int, or (P, 1) for (P, count) draws
    """
    bits = hash_of(seed, position, np.arange(count))
    return (bits >> np.uint64(11)) * 2.0**-53  # the 53 bits of a float64, so never 1.0


def shuffled(index: np.ndarray, length: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Images of `index` under the pseudo-random permutation of [0, length) that `key` selects.

    A Feistel network over pairs of digits to the base ceil(sqrt(length)), repeated until the result
    is below `length` (cycle walking, Black and Rogaway, 2002).
    """
    image = np.array(index, dtype=np.uint64)
    length = np.broadcast_to(np.asarray(length, dtype=np.uint64), image.shape)
    key = np.broadcast_to(np.asarray(key, dtype=np.uint64), image.shape)
    base = np.ceil(np.sqrt(length.astype(np.float64))).astype(np.uint64)
    rows = np.arange(len(image))
    while rows.size:
        digit = base[rows]
        left = image[rows] // digit
        right = image[rows] % digit
        with np.errstate(over="ignore"):  # keys are added modulo 2^64
            for number in range(_FEISTEL_ROUNDS):
                scrambled = mix(right ^ (key[rows] + np.uint64(number)))
                left, right = right, (left + scrambled % digit) % digit
        image[rows] = left * digit + right
        # After the first pass, only a share of 2 / sqrt(length) is left.
        rows = rows[image[rows] >= length[rows]]
    return image.astype(np.int64)


def batch_positions(k: int, global_batch_size: int, *, rank: int, world_size: int) -> np.ndarray:
    """(B,) int64 positions of this rank's part of global batch k."""
    assert global_batch_size % world_size == 0, "validated before the run"
    return np.arange(k * global_batch_size + rank, (k + 1) * global_batch_size, world_size)


@dataclass(frozen=True)
class Located:
    """Shard and sample of each position, (P,) int64, in the order of the positions."""

    shard: np.ndarray
    sample: np.ndarray


def _locate_parts(
    part: np.ndarray, positions: np.ndarray, locate: Callable[[int, np.ndarray], Located]
) -> Located:
    """Call `locate` with the number of each part and its positions. part: (P,) of each position"""
    shard = np.empty_like(positions)
    sample = np.empty_like(positions)
    for number in np.unique(part).tolist():
        rows = part == number
        located = locate(number, positions[rows])
        shard[rows] = located.shard
        sample[rows] = located.sample
    return Located(shard, sample)


class Order:
    """The order over shards.

    sizes: samples in each shard; streams: S; window: samples shuffled together in a stream
    """

    def __init__(
        self, sizes: Sequence[int] | np.ndarray, *, seed: int, streams: int, window: int
    ) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.seed = seed
        self.streams = streams
        self.window = window
        self.epoch_samples = int(self.sizes.sum())
        self._ends = np.cumsum(self.sizes)
        self._epochs: dict[int, _Epoch] = {}  # the latest two
        assert self.epoch_samples > 0, "an empty corpus is refused before"

    def locate(self, positions: np.ndarray) -> Located:
        """positions: (P,) int64, in any order, of any epochs"""
        positions = np.asarray(positions, dtype=np.int64)
        epochs = positions // self.epoch_samples
        # Nearly all batches lie in one epoch, and the general case takes ten times as long.
        if len(positions) and epochs.min() == epochs.max():
            return self._locate_in(int(epochs[0]), positions)
        return _locate_parts(epochs, positions, self._locate_in)

    def _locate_in(self, number: int, positions: np.ndarray) -> Located:
        """Locate positions of epoch `number`."""
        shards, ends, key = self._epoch(number)
        total = self.epoch_samples
        first_position = number * total
        offset = positions - first_position

        # Streams take turns, and an epoch may begin with any of them. Lengths of their ranges
        # differ by one at most: the first `total % streams` to take a turn are longer.
        turn = offset % self.streams
        stream = (turn + first_position) % self.streams  # as the position is modulo S
        range_length = (total - turn + self.streams - 1) // self.streams
        range_start = turn * (total // self.streams) + np.minimum(turn, total % self.streams)

        # Place i of the range lies in the window [begin, end), and is shuffled within it.
        i = offset // self.streams
        with np.errstate(over="ignore"):  # keys are sums modulo 2^64
            stream_key = mix(key ^ stream.astype(np.uint64))
            # By so much is the first window of the stream shorter.
            cut = (stream_key % np.uint64(self.window)).astype(np.int64)
            window = (i + cut) // self.window
            window_key = mix(stream_key + window.astype(np.uint64))
        begin = np.maximum(window * self.window - cut, 0)
        end = np.minimum((window + 1) * self.window - cut, range_length)
        place = range_start + begin + shuffled(i - begin, end - begin, window_key)

        # The shard at this place of the line, and the place within it.
        slot = np.searchsorted(ends, place, side="right")
        shard = shards[slot]
        start = ends[slot] - self.sizes[shard]
        return Located(shard, place - start)

    def _epoch(self, number: int) -> _Epoch:
        """Shards in the order of the line, the end of each on it, and the epoch's key, (1,)."""
        epoch = self._epochs.get(number)
        if epoch is None:
            draws = hash_of(self.seed, number, np.arange(len(self.sizes)))
            shards = np.argsort(draws, kind="stable")
            ends = np.cumsum(self.sizes[shards])
            epoch = shards, ends, hash_of(self.seed, number)
            # A batch at the end of an epoch needs the next one as well.
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[number] = epoch
        return epoch

    def replacement(self, position: int, attempt: int, shard: int) -> tuple[int, int]:
        """(shard, sample) to use instead of a bad sample of `shard`: a function of the position, so
        that all reruns agree."""
        draw = hash_of(self.seed, position, attempt, 0xBAD)[0]  # a constant apart from other draws
        place = int(draw % np.uint64(self.epoch_samples))
        substitute = int(np.searchsorted(self._ends, place, side="right"))
        return substitute, place - int(self._ends[substitute] - self.sizes[substitute])


class Mixture:
    """Several orders in fixed proportions, each with epochs of its own.

    In each stream, BLOCK samples contain a fixed number of each order's, in shuffled places. The
    i-th that a stream takes of an order is the i-th of that order's stream, so no sample is lost or
    repeated within an epoch of its order. Shards are numbered through all orders.
    """

    BLOCK = 10_000

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], *, seed: int) -> None:
        (self.streams,) = {order.streams for order in orders}
        self.orders = tuple(orders)
        self.seed = seed
        self.epoch_samples = sum(order.epoch_samples for order in orders)
        self.quota = quotas(weights, self.BLOCK)
        self.first_shard = np.cumsum([0, *(len(order.sizes) for order in orders)])

    def locate(self, positions: np.ndarray) -> Located:
        """positions: (P,) int64, in any order"""
        positions = np.asarray(positions, dtype=np.int64)
        i, stream = np.divmod(positions, self.streams)
        block, slot = np.divmod(i, self.BLOCK)  # of the stream
        slot = shuffled(slot, np.array(self.BLOCK), hash_of(self.seed, 0x313, stream, block))

        # Slots of a block are given to the orders one after the other, `quota` to each.
        last_slot = np.cumsum(self.quota)
        part = np.searchsorted(last_slot, slot, side="right")
        slot_in_part = slot - (last_slot - self.quota)[part]
        i_in_part = block * self.quota[part] + slot_in_part

        own_positions = i_in_part * self.streams + stream
        located = _locate_parts(part, own_positions, lambda n, own: self.orders[n].locate(own))
        return Located(located.shard + self.first_shard[part], located.sample)

    def replacement(self, position: int, attempt: int, shard: int) -> tuple[int, int]:
        """As `Order.replacement`, from the same order: bad samples do not change the shares."""
        part = int(np.searchsorted(self.first_shard, shard, side="right")) - 1
        first = int(self.first_shard[part])
        substitute, sample = self.orders[part].replacement(position, attempt, shard - first)
        return first + substitute, sample


def quotas(weights: Sequence[float], total: int) -> np.ndarray:
    """Integers in proportion to the weights that add up to `total`, by largest remainder."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    whole = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(whole - exact, kind="stable")
    whole[by_remainder[: total - int(whole.sum())]] += 1
    return whole


def corpus_digest(shards: Iterable[tuple[str, str]]) -> str:
    """SHA-1 of (shard name, shard digest) in order. A run resumes exactly where it is equal."""
    return hashlib.sha1(repr(list(shards)).encode()).hexdigest()
