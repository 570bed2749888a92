"""Batches that group samples of one concept: complete, shuffled, the same for all ranks."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import batch
from loading import batches as plain_batches
from samples import png, write_shard

from clipx.data import sample_values as module
from clipx.data.concepts import read_concepts
from clipx.data.config import DataConfig, GroupConfig
from clipx.data.corpus import Corpus
from clipx.data.grouped_order import SAME_CONCEPT_ATTEMPTS, GroupedOrder
from clipx.data.loader import Batches


def drawn(counts: list[int], group_size: int, seed: int, num_shards: int) -> GroupedOrder:
    """Concepts of so many samples, in any order of the samples."""
    concepts = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(concepts)
    cuts = np.linspace(0, len(concepts), num_shards + 1).astype(np.int64)
    order = GroupedOrder(np.diff(cuts), concepts, seed=seed, group_size=group_size)
    vars(order)["concepts"] = concepts
    return order


ORDERS = st.builds(
    drawn,
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(2, 4),
    st.integers(0, 1000),
    st.integers(1, 5),
)


def numbers(order: GroupedOrder, positions: np.ndarray) -> list[int]:
    """Numbers of the samples among all."""
    located = order.locate(positions)
    first = np.cumsum(order._sizes) - order._sizes
    assert (located.sample < order._sizes[located.shard]).all()
    return (first[located.shard] + located.sample).tolist()


@settings(max_examples=100, deadline=None)
@given(order=ORDERS, epoch=st.integers(0, 1000))
def test_an_epoch_has_each_sample_and_fills_up_the_last_group_of_a_concept(
    order: GroupedOrder, epoch: int
) -> None:
    concepts = vars(order)["concepts"]
    size = order.group_size
    start = epoch * order.epoch_samples
    found = numbers(order, np.arange(start, start + order.epoch_samples))
    times = Counter(found)
    assert set(times) == set(range(len(concepts)))
    for concept, count in Counter(concepts.tolist()).items():
        of_concept = sorted(times[n] for n in np.flatnonzero(concepts == concept).tolist())
        total = size * -(-count // size)
        assert sum(of_concept) == total
        # Those that fill up come once more; of a concept below the group's size, in turns.
        assert of_concept[0] == total // count
        assert of_concept[-1] <= total // count + 1
    # Each group has one concept, and no sample twice where the concept has enough.
    for first in range(0, len(found), size):
        group = found[first : first + size]
        (concept,) = {int(concepts[n]) for n in group}
        available = int((concepts == concept).sum())
        assert len(set(group)) == min(size, available)


@settings(max_examples=50, deadline=None)
@given(
    order=ORDERS,
    ranks=st.sampled_from([1, 2, 3, 4]),
    groups=st.integers(1, 5),
    k=st.integers(0, 200),
)
def test_ranks_together_read_the_batch_of_one_process(
    order: GroupedOrder, ranks: int, groups: int, k: int
) -> None:
    """Also where a batch spans several epochs; and in any order of the positions."""
    size = 12 * order.group_size * groups
    positions = np.arange(k * size, (k + 1) * size)
    whole = numbers(order, positions)
    for rank in range(ranks):
        assert numbers(order, positions[rank::ranks]) == whole[rank::ranks]
    backwards = numbers(order, positions[::-1])
    assert backwards[::-1] == whole


def test_epochs_and_seeds_have_other_groups_and_other_turns() -> None:
    counts = [7] * 30
    order = drawn(counts, 2, 0, 3)
    total = order.epoch_samples
    epochs = [numbers(order, np.arange(e * total, (e + 1) * total)) for e in range(3)]
    pairs = [{frozenset(e[i : i + 2]) for i in range(0, total, 2)} for e in epochs]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        shared = len(pairs[first] & pairs[second]) / len(pairs[first])
        # Of 21 pairs of a concept an epoch has 4, so a fifth of them comes again by chance.
        assert 0.05 < shared < 0.4
        same_place = np.mean(np.array(epochs[first]) == np.array(epochs[second]))
        assert same_place < 0.05
    other = GroupedOrder(order._sizes, vars(order)["concepts"], seed=1, group_size=2)
    assert np.mean(np.array(numbers(other, np.arange(total))) == np.array(epochs[0])) < 0.05


def test_the_order_never_changes_by_accident() -> None:
    """A resumed run relies on it, from one version to the next."""
    concepts = np.arange(41) * 7 % 12
    order = GroupedOrder([20, 0, 21], concepts, seed=7, group_size=3)
    found = numbers(order, np.arange(10_000))
    digest = hashlib.sha1(np.array(found, dtype=np.int64).tobytes()).hexdigest()
    assert digest == "7de429064fdda179ddbaea4c2820f0b0ad9d5879"


@settings(max_examples=50, deadline=None)
@given(order=ORDERS, position=st.integers(0, 10_000))
def test_a_replacement_is_of_the_same_concept_for_some_attempts(
    order: GroupedOrder, position: int
) -> None:
    concepts = vars(order)["concepts"]
    first = np.cumsum(order._sizes) - order._sizes
    (own,) = numbers(order, np.array([position]))
    for attempt in range(1, SAME_CONCEPT_ATTEMPTS + 1):
        shard, sample = order.replacement(position, attempt, 0)
        assert concepts[first[shard] + sample] == concepts[own]
        assert order.replacement(position, attempt, 0) == (shard, sample)
    later = set()
    for attempt in range(SAME_CONCEPT_ATTEMPTS + 1, 65):
        shard, sample = order.replacement(position, attempt, 0)
        later.add(int(concepts[first[shard] + sample]))
    share = Counter(concepts.tolist()).most_common(1)[0][1] / len(concepts)
    assert len(later) > 1 or share > 0.7


# --- Of a corpus ---


def write_classes(folder: Path, count: int = 20) -> Path:
    """Sample n has the class n % 3 and the caption `number n % 4`."""
    for shard in (0, 1):
        samples: dict[str, dict[str, Any]] = {}
        for n in range(shard * count // 2, (shard + 1) * count // 2):
            samples[f"k{n:02d}"] = {"png": png(n), "txt": f"number {n % 4}", "cls": str(n % 3)}
        write_shard(folder / f"{shard}.tar", samples)
    return folder


def corpus_of(folder: Path) -> Corpus:
    return DataConfig(shards=str(folder), label_field="cls").open(seed=0)


def batches(folder: Path, **settings: Any) -> Batches:
    source = plain_batches(folder, label_field="cls", global_batch_size=8, **settings)
    concepts = read_concepts(source.corpus, "label", lambda count: None)
    config = DataConfig(shards=str(folder), label_field="cls", group=GroupConfig(size=2))
    seed = source.corpus.order.seed
    source.corpus = config.corpus(config.open_sources(), seed=seed, concepts=concepts)
    source.reader.corpus = source.corpus
    return source


@pytest.mark.parametrize("by", ["label", "caption"])
def test_concepts_are_read_once(tmp_path: Path, by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_CHUNK", 6)
    corpus = corpus_of(write_classes(tmp_path / "data"))
    expected = [n % (3 if by == "label" else 4) for n in range(20)]
    done: list[int] = []
    found = read_concepts(corpus, by, done.append)
    assert sum(done) == 20
    # Captions are numbered by their hashes, so that only equality counts.
    assert len(set(zip(expected, found.tolist(), strict=True))) == len(set(expected))
    assert set(found.tolist()) == set(range(len(set(expected))))

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(Corpus, "read_raw", fail)
    again = read_concepts(corpus, by, done.append)
    assert again.tolist() == found.tolist()
    (store,) = (tmp_path / "cache/clipx/concepts").iterdir()
    store.write_bytes(store.read_bytes()[:50])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert read_concepts(corpus, by, done.append).tolist() == found.tolist()


def test_a_sample_without_its_label_is_a_concept_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_classes(tmp_path / "data")
    write_shard(folder / "2.tar", {f"x{n}": {"png": png(n), "txt": "x"} for n in range(2)})
    found = read_concepts(corpus_of(folder), "label", lambda count: None)
    assert found.tolist() == [n % 3 for n in range(20)] + [3, 4]
    assert not list((tmp_path / "cache").rglob("*.npy")), "it may be there the next time"


def test_rows_of_a_group_have_one_label_over_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_classes(tmp_path / "data")
    whole = batches(folder)
    ranks = [batches(folder, rank=rank, world_size=2) for rank in (0, 1)]
    for k in range(8):
        rows = batch(whole, k)
        labels = rows.views["label"].view(-1, 2)
        assert (labels[:, 0] == labels[:, 1]).all()
        for rank, source in enumerate(ranks):
            assert batch(source, k).keys == rows.keys[rank::2]


def test_a_bad_sample_is_replaced_by_one_of_its_concept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_classes(tmp_path / "data")
    samples: dict[str, dict[str, Any]] = {}
    for n in range(10, 20):
        samples[f"k{n:02d}"] = {"png": png(n), "txt": "x", "cls": str(n % 3)}
    samples["k11"]["png"] = b"no picture"
    write_shard(folder / "1.tar", samples)
    source = batches(folder)
    num_bad = 0
    for k in range(8):
        rows = batch(source, k)
        num_bad += len(rows.bad)
        labels = rows.views["label"].view(-1, 2)
        assert (labels[:, 0] == labels[:, 1]).all()
        assert "k11" not in rows.keys
    assert num_bad > 0
