"""The order of the data: complete, shuffled, the same for all ranks, never changed by accident."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipx.data.order import (
    Mixture,
    Order,
    corpus_digest,
    hash_of,
    quotas,
    shuffled,
    uniforms,
)

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any)
ORDERS = st.builds(
    Order,
    SIZES,
    seed=st.integers(0, 2**40),
    streams=st.integers(1, 80),  # more than samples and shards, too
    window=st.integers(1, 50),
)


def samples(order: Order | Mixture, positions: np.ndarray) -> list[tuple[int, int]]:
    located = order.locate(positions)
    return list(zip(located.shard.tolist(), located.sample.tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(order=ORDERS, epoch=st.integers(0, 1000))
def test_every_sample_comes_once_per_epoch(order: Order, epoch: int) -> None:
    total = order.epoch_samples
    positions = np.arange(epoch * total, (epoch + 1) * total)
    expected = [(shard, i) for shard, size in enumerate(order.sizes) for i in range(size)]
    assert sorted(samples(order, positions)) == expected


@settings(max_examples=60, deadline=None)
@given(
    order=ORDERS,
    ranks=st.sampled_from([1, 2, 3, 4, 8]),
    rows=st.integers(1, 12),
    first=st.integers(0, 300),
)
def test_ranks_together_read_the_batch_of_one_process(
    order: Order, ranks: int, rows: int, first: int
) -> None:
    """Also where a batch is larger than the corpus and spans several epochs."""
    size = 24 * rows
    for k in (first, first + 1):
        whole = samples(order, np.arange(k * size, (k + 1) * size))
        parts = [
            samples(order, np.arange(k * size + rank, (k + 1) * size, ranks))
            for rank in range(ranks)
        ]
        assert [row for rows in zip(*parts, strict=True) for row in rows] == whole


@settings(max_examples=40, deadline=None)
@given(order=ORDERS, positions=st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_a_position_means_the_same_in_any_company(order: Order, positions: list[int]) -> None:
    together = samples(order, np.array(positions))
    assert together == [samples(order, np.array([p]))[0] for p in positions]


def test_a_rank_touches_only_the_shards_of_its_streams() -> None:
    # 32 shards of 10 for 8 streams of 40: a stream is 4 whole shards, a rank of 4 has 2 streams.
    order = Order([10] * 32, seed=1, streams=8, window=20_000)
    touched = [{shard for shard, _ in samples(order, np.arange(rank, 320, 4))} for rank in range(4)]
    assert [len(shards) for shards in touched] == [8] * 4
    assert set.union(*touched) == set(range(32))


def test_a_batch_draws_alike_from_all_streams() -> None:
    order = Order([10] * 32, seed=1, streams=8, window=20_000)
    stream_of_shard = {shard: p % 8 for p, (shard, _) in enumerate(samples(order, np.arange(320)))}
    batch = [stream_of_shard[shard] for shard, _ in samples(order, np.arange(64, 96))]
    assert np.bincount(batch).tolist() == [4] * 8


@pytest.mark.parametrize("sizes", [[4000], [1] * 4000, [7, 3000, 0, 993]])
@pytest.mark.parametrize("streams", [1, 64])
def test_the_order_is_shuffled(sizes: list[int], streams: int) -> None:
    order = Order(sizes, seed=0, streams=streams, window=20_000)
    start = np.concatenate([[0], np.cumsum(sizes)])
    place = np.array([start[shard] + i for shard, i in samples(order, np.arange(4000))])
    if streams == 1:  # else a stream is a range of the line, and taking turns repeats its place
        # Of 4000 random places, a rank correlation has the standard deviation 4000^-0.5 = 0.016.
        assert abs(np.corrcoef(np.arange(4000), place)[0, 1]) < 4 * 0.016
        assert abs(np.corrcoef(place[:-1], place[1:])[0, 1]) < 4 * 0.016
    # Two random places are neighbors with probability 2/4000, so 2 pairs are expected.
    assert sum(abs(a - b) == 1 for a, b in pairwise(place.tolist())) < 12


def test_seeds_and_epochs_differ() -> None:
    def sequence(seed: int, epoch: int) -> tuple[tuple[int, int], ...]:
        order = Order([5, 1, 7, 30], seed=seed, streams=4, window=10)
        return tuple(samples(order, np.arange(43 * epoch, 43 * (epoch + 1))))

    sequences = [sequence(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len(set(sequences)) == 16
    assert sequence(2, 3) == sequence(2, 3)


def test_windows_keep_samples_near_their_place_and_begin_elsewhere_in_each_stream() -> None:
    order = Order([1000], seed=0, streams=4, window=10)
    cuts = []
    for stream in range(4):
        place = np.array([i for _, i in samples(order, np.arange(stream, 1000, 4))])
        place -= place.min()
        fits = [
            cut
            for cut in range(10)
            if np.array_equal((place + cut) // 10, (np.arange(250) + cut) // 10)
        ]
        assert len(fits) == 1
        cuts += fits
    assert len(set(cuts)) > 1


def test_many_ranks_and_shards_stay_exact() -> None:
    """1,024 ranks, 200,000 unequal shards, a position after months of training."""
    sizes = (hash_of(np.arange(200_000)) % np.uint64(5000)).astype(np.int64) + 1
    order = Order(sizes.tolist(), seed=3, streams=1024, window=20_000)
    size = 1024 * 32
    k = 7 * order.epoch_samples // size + 11
    located = order.locate(np.arange(k * size, (k + 1) * size))
    assert (located.sample >= 0).all()
    assert (located.sample < sizes[located.shard]).all()
    assert len(set(zip(located.shard.tolist(), located.sample.tolist(), strict=True))) == size


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_shuffled_is_a_permutation(length: int, key: int) -> None:
    image = shuffled(np.arange(length), np.array(length), np.array(key, dtype=np.uint64))
    assert sorted(image.tolist()) == list(range(length))


def test_every_place_is_equally_likely() -> None:
    # 6000 keys, 6 places: 1000 each with a standard deviation of sqrt(6000 * 1/6 * 5/6) = 29.
    images = shuffled(np.full(6000, 2), np.array(6), hash_of(np.arange(6000)))
    assert np.abs(np.bincount(images, minlength=6) - 1000).max() < 4 * 29


def test_draws_are_uniform_and_apart() -> None:
    draws = np.stack([uniforms(5, position, 6) for position in range(2000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    # Standard deviations over 2000 draws: sqrt(1/12/2000) = 0.0065 of the mean, 0.022 of a
    # correlation.
    assert np.abs(draws.mean(0) - 0.5).max() < 4 * 0.0065
    correlation = np.corrcoef(draws.T) - np.eye(6)
    assert np.abs(correlation).max() < 4 * 0.022
    assert not np.array_equal(uniforms(5, 0, 6), uniforms(6, 0, 6))


def test_replacements_cover_the_corpus_and_repeat_themselves() -> None:
    order = Order([2, 0, 3], seed=0, streams=4, window=5)
    replacements = [
        order.replacement(position, attempt, 0) for position in range(20) for attempt in (1, 2, 3)
    ]
    assert set(replacements) == {(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)}
    assert replacements[0] == Order([2, 0, 3], seed=0, streams=9, window=2).replacement(0, 1, 0)


# --- mixtures ---


def mixtures(kind: type[Mixture] = Mixture) -> st.SearchStrategy[Mixture]:
    return st.builds(
        lambda sizes, weights, seed, streams: kind(
            [Order(s, seed=seed, streams=streams, window=7) for s in sizes],
            weights[: len(sizes)],
            seed=seed,
        ),
        sizes=st.lists(SIZES, min_size=1, max_size=4),
        weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
        seed=st.integers(0, 2**40),
        streams=st.integers(1, 9),
    )


class ShortBlocks(Mixture):
    BLOCK = 300  # instead of 10,000: three of them are compared in a moment


def samples_of_part(mixture: Mixture, count: int, part: int) -> list[tuple[int, int]]:
    """The samples of one order among the first `count` positions of each stream."""
    located = mixture.locate(np.arange(count * mixture.streams))
    first, last = mixture.first_shard[part], mixture.first_shard[part + 1]
    return [
        (shard - first, sample)
        for shard, sample in zip(located.shard.tolist(), located.sample.tolist(), strict=True)
        if first <= shard < last
    ]


@settings(max_examples=25, deadline=None)
@given(mixture=mixtures(ShortBlocks), blocks=st.integers(1, 3))
def test_a_mixture_goes_through_each_order_without_loss_or_repetition(
    mixture: Mixture, blocks: int
) -> None:
    """After whole blocks, the samples of an order are the beginning of that order itself."""
    for part, order in enumerate(mixture.orders):
        drawn = samples_of_part(mixture, blocks * mixture.BLOCK, part)
        count = blocks * int(mixture.quota[part]) * mixture.streams
        assert sorted(drawn) == sorted(samples(order, np.arange(count)))


def test_a_mixture_has_its_proportions_all_along() -> None:
    orders = [Order([n], seed=0, streams=8, window=10) for n in (50, 5000, 700)]
    mixture = Mixture(orders, [1, 2, 7], seed=3)
    shard = mixture.locate(np.arange(40_000)).shard
    # Draws without replacement from 10,000, at most binomial: 1,000 of which 100, 200 and 700
    # have standard deviations of 9.5, 13 and 14.
    counts = np.array([np.bincount(part, minlength=3) for part in shard.reshape(40, 1000)])
    assert (np.abs(counts - [100, 200, 700]) < 5 * np.array([9.5, 12.7, 14.5])).all()
    assert mixture.quota.tolist() == [1000, 2000, 7000]


def test_ranks_of_a_mixture_touch_only_the_shards_of_their_streams() -> None:
    orders = [Order([10_000] * 16, seed=1, streams=8, window=100) for _ in range(2)]
    mixture = Mixture(orders, [1, 1], seed=0)
    positions = np.arange(2 * 160_000 // 50 * 8)
    touched = [set(mixture.locate(positions[rank::4]).shard.tolist()) for rank in range(4)]
    assert max(len(shards) for shards in touched) <= 8  # 2 streams of 2 shards each, of 2 orders


@settings(max_examples=30, deadline=None)
@given(mixture=mixtures(), positions=st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_a_position_of_a_mixture_means_the_same_in_any_company(
    mixture: Mixture, positions: list[int]
) -> None:
    together = samples(mixture, np.array(positions))
    assert together == [samples(mixture, np.array([p]))[0] for p in positions]


def test_a_replacement_is_of_the_same_order() -> None:
    orders = [Order(sizes, seed=0, streams=2, window=5) for sizes in ([3, 4], [5])]
    mixture = Mixture(orders, [1, 1], seed=0)
    replacements = [
        mixture.replacement(position, 1, shard) for position in range(30) for shard in (0, 2)
    ]
    assert {shard for shard, _ in replacements[::2]} == {0, 1}
    assert {shard for shard, _ in replacements[1::2]} == {2}
    assert {sample for _, sample in replacements[1::2]} == set(range(5))


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9), total=st.integers(0, 9999))
def test_quotas_are_whole_parts_of_the_total(weights: list[float], total: int) -> None:
    shares = quotas(weights, total)
    assert shares.sum() == total
    assert (np.abs(shares - np.array(weights) / sum(weights) * total) < 1 + 1e-6).all()


# --- golden values: a change here breaks all old runs, and needs a line in the changelog ---


def test_the_order_of_a_small_corpus_is_this_one() -> None:
    order = Order([5, 1, 7], seed=0, streams=4, window=3)
    assert samples(order, np.arange(26)) == [
        *[(2, 2), (2, 4), (0, 0), (0, 2), (2, 0), (2, 6), (1, 0), (0, 3), (2, 1), (2, 5)],
        *[(0, 1), (0, 4), (2, 3)],  # the second epoch follows
        *[(1, 0), (0, 3), (2, 1), (2, 5), (0, 0), (0, 4), (2, 2), (2, 4), (0, 1), (2, 0)],
        *[(2, 3), (2, 6), (0, 2)],
    ]
    assert [order.replacement(7, attempt, 0) for attempt in (1, 2, 3)] == [(2, 1), (2, 3), (2, 4)]


def test_the_order_of_a_small_mixture_is_this_one() -> None:
    orders = [Order(sizes, seed=0, streams=2, window=2) for sizes in ([3], [4, 2])]
    assert samples(Mixture(orders, [1, 2], seed=0), np.arange(12)) == [
        *[(1, 0), (0, 1), (1, 1), (1, 2), (1, 2), (1, 1), (1, 1), (1, 2), (0, 2), (1, 3)],
        *[(2, 0), (2, 0)],
    ]


def test_the_order_of_a_larger_corpus_has_this_digest() -> None:
    order = Order([100 * n + 7 for n in range(40)], seed=42, streams=64, window=500)
    located = order.locate(np.arange(0, 3 * order.epoch_samples, 5))
    table = np.stack([located.shard, located.sample]).astype("<i8")
    assert hashlib.sha1(table.tobytes()).hexdigest() == "e1e17dcd459bc3687fe1465e83569fc639b83491"


def test_the_draws_of_a_position_are_these() -> None:
    # Exact: a 53-bit integer times a power of two.
    assert uniforms(0, 0, 3).tolist() == [
        0.8027226048777543,
        0.7732843021838348,
        0.32099431248547894,
    ]
    assert corpus_digest([("0.tar", "ab")]) == "ff26ae04de6c7f0a112e01c3fc40725f92256a3d"
