"""DataConfig -> Corpus: several sources, numbered through and repeated as configured."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import batches
from ranks import server
from samples import pair, write_shard

from clipx.data.captions import CaptionFields
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.order import Order
from clipx.data.sample import BadSample, Raw
from clipx.data.skip_list import read_skip_list
from clipx.data.sources import webdataset
from clipx.types import UserError

SIZES = {"a": (4, 3), "b": (5,), "c": (1, 0, 2)}
KEYS = {name: [f"{name}{n}" for n in range(sum(sizes))] for name, sizes in SIZES.items()}


def write(folder: Path, *, bad: str = "") -> Path:
    """Three folders of shards; of the samples of source `bad`, only the first can be read."""
    for name, sizes in SIZES.items():
        rest = list(KEYS[name])
        for shard, size in enumerate(sizes):
            keys, rest = rest[:size], rest[size:]
            samples = {
                key: {
                    **pair(int(key[1:])),
                    **({"jpg": b"", "png": b""} if name == bad and key[1:] > "0" else {}),
                }
                for key in keys
            }
            write_shard(folder / name / f"{shard}.tar", samples)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "corpora")


def config(folder: Path, names: str = "abc", **settings: Any) -> DataConfig:
    sources = {name: webdataset.Config(str(folder / name)) for name in names}
    return DataConfig(sources=sources, **{"workers": 0, "streams": 1, "window": 4, **settings})


def keys_at(corpus: Corpus, positions: np.ndarray) -> list[str]:
    located = corpus.locate(positions)
    pairs = zip(located.shard.tolist(), located.sample.tolist(), strict=True)
    return [corpus.key(shard, sample) for shard, sample in pairs]


def test_an_epoch_has_every_sample_of_a_source_as_often_as_it_is_repeated(folder: Path) -> None:
    corpus = config(folder, repeat={"a": 2, "c": 3}, streams=3).open(seed=1)
    expected = Counter({k: n for name, n in (("a", 2), ("b", 1), ("c", 3)) for k in KEYS[name]})
    assert corpus.num_samples == expected.total() == 7 * 2 + 5 + 3 * 3
    epochs = [keys_at(corpus, np.arange(28) + 28 * epoch) for epoch in range(3)]
    assert all(Counter(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_each_source_of_a_mixture_is_taken_by_its_weight_and_evenly(folder: Path) -> None:
    weights = {"a": 5.0, "b": 3, "c": 2}
    corpus = config(folder, weights=weights).open(seed=1)
    keys = keys_at(corpus, np.arange(10_000))
    taken = {name: [key for key in keys if key[0] == name] for name in SIZES}
    assert {name: len(t) for name, t in taken.items()} == {"a": 5000, "b": 3000, "c": 2000}
    for name, own in KEYS.items():  # whole epochs of the source, and a part of one
        counts = Counter(taken[name])
        assert {*counts} == {*own}
        assert {*counts.values()} <= {len(taken[name]) // len(own) + more for more in (0, 1)}
    # 5 to 3 to 2 from the beginning: of 1000, standard deviations of at most 15.8.
    begin = Counter(key[0] for key in keys[:1000])
    assert all(abs(begin[name] - weights[name] * 100) < 5 * 15.8 for name in weights)


def test_the_order_of_sources_in_the_config_is_nothing(folder: Path) -> None:
    for settings in ({"weights": {"b": 1, "a": 2}}, {"repeat": {"b": 2}}):
        one, other = (config(folder, names, **settings).open(seed=3) for names in ("ab", "ba"))
        assert keys_at(one, np.arange(99)) == keys_at(other, np.arange(99))
        assert one.digest == other.digest


def test_shards_is_a_source_of_the_name_shards(folder: Path) -> None:
    plain = DataConfig(shards=str(folder / "a"), streams=1, window=4).open(seed=0)
    sources = {"shards": webdataset.Config(str(folder / "a"))}
    named = DataConfig(sources=sources, streams=1, window=4).open(seed=0)
    assert keys_at(plain, np.arange(20)) == keys_at(named, np.arange(20))
    assert plain.digest == named.digest


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"shards": "x"}, "either `shards` or `sources`, not both"),
        ({"sources": {}}, "either `shards` or `sources`, not both"),
        ({"weights": {"x": 1, "a": 1, "b": 1, "c": 1}}, r"name no source: \['x'\]"),
        ({"repeat": {"x": 1}}, r"name no source: \['x'\]"),
        (
            {"weights": {"a": 1, "c": 1}},
            r"one weight for each source.*sources: \['a', 'b', 'c'\], weights: \['a', 'c'\]",
        ),
        ({"weights": {"a": 1, "b": 1, "c": 1}, "repeat": {"a": 2}}, "no data.repeat beside it"),
        ({"weights": {"a": 1, "b": 1e-6, "c": 1}}, r"data\.weights\.b is below 0\.01% of the"),
    ],
)
def test_conflicting_settings_are_refused(
    folder: Path, settings: dict[str, Any], complaint: str
) -> None:
    sources = {name: webdataset.Config(str(folder / name)) for name in SIZES}
    with pytest.raises(UserError, match=complaint):
        DataConfig(**{"sources": sources, **settings}).open(seed=0)


def test_a_source_without_samples_is_named(folder: Path) -> None:
    write_shard(folder / "empty" / "0.tar", {})
    sources = {name: webdataset.Config(str(folder / name)) for name in ("a", "empty")}
    with pytest.raises(UserError, match=r"data\.sources\.empty: all 1 shards are empty"):
        DataConfig(sources=sources).open(seed=0)


def test_an_empty_list_of_shards_is_refused() -> None:
    with pytest.raises(UserError, match="the list of shards is empty"):
        DataConfig(shards=[]).open(seed=0)


def test_shards_are_numbered_through_all_sources(folder: Path) -> None:
    corpus = config(folder).open(seed=0)
    names = [f"{name}/{n}.tar" for name, sizes in SIZES.items() for n in range(len(sizes))]
    assert corpus.num_shards == 6
    assert corpus.sizes.tolist() == [size for sizes in SIZES.values() for size in sizes]
    assert [corpus.name(shard) for shard in range(6)] == [str(folder / name) for name in names]
    numbered = [(s, n) for s, size in enumerate(corpus.sizes.tolist()) for n in range(size)]
    assert [corpus.key(*at) for at in numbered] == [key for keys in KEYS.values() for key in keys]
    assert [corpus.read(*at).key for at in numbered] == [corpus.key(*at) for at in numbered]
    table = list(corpus.table())
    assert [row[:2] for row in table] == list(zip(names, corpus.sizes.tolist(), strict=True))
    assert len({row[2] for row in table}) == 6


def test_a_sample_is_where_the_order_of_all_shards_has_it(folder: Path) -> None:
    corpus = config(folder, streams=3).open(seed=5)
    order = Order(corpus.sizes, seed=5, streams=3, window=4)
    positions = np.array([31, 2, 2, 0, 100])
    assert np.array_equal(corpus.locate(positions).shard, order.locate(positions).shard)
    assert np.array_equal(corpus.locate(positions).sample, order.locate(positions).sample)


def test_the_digest_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    digest = config(folder).open(seed=0).digest
    shutil.copytree(folder, tmp_path / "moved")
    assert (
        config(tmp_path / "moved")
        .open(
            seed=7,
        )
        .digest
        == digest
    )
    write_shard(tmp_path / "moved/b/0.tar", {key: pair(7) for key in KEYS["b"]})
    assert config(tmp_path / "moved").open(seed=0).digest != digest
    assert config(folder, "ab").open(seed=0).digest != digest
    (folder / "c/0.tar").rename(folder / "c/3.tar")
    assert config(folder).open(seed=0).digest != digest, "another order of the shards"


@pytest.mark.parametrize("times", [{"weights": {"a": 1, "b": 2, "c": 1}}, {"repeat": {"b": 3}}])
def test_good_samples_stand_in_for_bad_ones(tmp_path: Path, times: dict[str, Any]) -> None:
    """Of the same source, where each has its share."""
    source = batches(
        None,
        sources=config(write(tmp_path, bad="b")).sources,
        global_batch_size=60,
        streams=1,
        max_bad_fraction=1.0,
        **times,
    )
    loaded = source[0]
    expected = keys_at(source.corpus, np.array(loaded.positions))
    replaced = [(key, used) for key, used in zip(expected, loaded.keys, strict=True) if key != used]
    assert len(replaced) > 5
    assert {key[0] for key, _ in replaced} == {"b"}
    assert {bad.key for bad in loaded.bad} == set(KEYS["b"][1:])
    if "weights" in times:
        assert {used for _, used in replaced} == {"b0"}
    else:
        assert {used[0] for _, used in replaced} == {"a", "b", "c"}


def test_a_skip_list_holds_for_a_shard_in_every_source_that_has_it(folder: Path) -> None:
    sources = {name: webdataset.Config(str(folder / "a")) for name in ("one", "two")}
    corpus = DataConfig(sources=sources).open(seed=0)
    line = {"shard": str(folder / "a/1.tar"), "key": "a4"}
    (folder / "bad.jsonl").write_text(json.dumps(line))
    assert read_skip_list(folder / "bad.jsonl", corpus) == ({1: {"a4"}, 3: {"a4"}}, 0)


def test_a_shard_of_a_skip_list_may_vanish(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps({"shard": str(folder / "b/0.tar"), "key": "b2"}))
    source = batches(
        None, sources=config(folder).sources, skip=str(tmp_path / "bad.jsonl"), global_batch_size=15
    )
    (folder / "b/0.tar").unlink()
    loaded = source[0]
    assert {bad.stage for bad in loaded.bad} == {"read"}
    assert len({bad.position for bad in loaded.bad}) == 5
    assert not {"b0", "b1", "b2", "b3", "b4"} & set(loaded.keys)


def first_batches(source: Any) -> list[Any]:
    return [
        (loaded.keys, loaded.views["image"].tolist(), loaded.views["text"].tolist())
        for loaded in map(source.__getitem__, (0, 3))
    ]


def in_child(source: Any, answers: Any) -> None:
    answers.put(first_batches(source))


@pytest.mark.parametrize("method", ["fork", "pickled"])
def test_batches_are_the_same_in_another_process(folder: Path, method: str) -> None:
    """Forked from here, and by a server that knows the source only by its pickle, as Python 3.14
    starts processes."""
    source = batches(None, sources=config(folder).sources, repeat={"b": 2}, flip=0.5)
    expected = first_batches(source)  # and shards are open
    context: Any = multiprocessing.get_context("fork") if method == "fork" else server()
    answers = context.SimpleQueue()
    child = context.Process(target=in_child, args=(source, answers))
    child.start()
    batches_there = answers.get()
    child.join()
    assert batches_there == expected


def test_a_pickled_corpus_is_the_same(folder: Path) -> None:
    corpus = config(folder, weights={"a": 1, "b": 1, "c": 1}).open(seed=2)
    again: Corpus = pickle.loads(pickle.dumps(corpus))  # noqa: S301 our own bytes
    assert keys_at(again, np.arange(50)) == keys_at(corpus, np.arange(50))
    assert again.digest == corpus.digest
    assert again.read(2, 1) == corpus.read(2, 1)


@dataclass
class Remote:
    """A source that only records which shards are prefetched."""

    sizes: np.ndarray
    is_remote: bool = True
    prefetched: list[int] = field(default_factory=list)
    faults: Sequence[BadSample] = ()

    @property
    def digests(self) -> Sequence[str]:
        return ["" for _ in self.sizes]

    def name(self, shard: int) -> str:
        return f"s3://bucket/{shard}.tar"

    def key(self, shard: int, sample: int) -> str:
        return f"{shard}-{sample}"

    def read(self, shard: int, sample: int, *, max_image_bytes: int = 0) -> Raw:
        raise AssertionError("no sample is read here")

    def prefetch(self, shards: Sequence[int]) -> None:
        self.prefetched += shards


def test_shards_are_prefetched_in_the_order_of_need_and_once() -> None:
    sources = {name: Remote(np.array(sizes)) for name, sizes in (("x", [9, 8, 7]), ("y", [5, 6]))}
    order = Order([9, 8, 7, 5, 6], seed=4, streams=2, window=5)
    corpus = Corpus(sources, order, np.arange(5), CaptionFields({"txt": 1.0}))
    assert corpus.is_remote
    positions = np.arange(35)
    corpus.prefetch(positions)
    needed = list(dict.fromkeys(corpus.locate(positions).shard.tolist()))
    assert sorted(needed) == [0, 1, 2, 3, 4]
    assert sources["x"].prefetched == [shard for shard in needed if shard < 3]
    assert sources["y"].prefetched == [shard - 3 for shard in needed if shard >= 3]


def test_batches_prefetch_what_comes(corpus: Path) -> None:
    """Each position once, a quarter of a window ahead and at least 8 batches."""
    source = batches(corpus, global_batch_size=6, world_size=2, rank=1, streams=4, window=60)
    prefetched: list[int] = []
    source.corpus.is_remote = True
    source.corpus.prefetch = lambda positions: prefetched.extend(positions)  # type: ignore[method-assign]
    ahead = {0: 10, 1: 11, 5: 15, 2: 15}  # 4 * 60 / (4 * 6) = 10
    for batch, last in ahead.items():
        _ = source[batch]
        assert prefetched == list(range(1, 6 * (last + 1), 2))


def test_a_local_corpus_prefetches_nothing(corpus: Path) -> None:
    source = batches(corpus)
    source.corpus.prefetch = None  # type: ignore[assignment]
    assert len(source[0].keys) == 8
