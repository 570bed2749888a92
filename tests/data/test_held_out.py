"""`data.held_out`: which samples it takes, and that a run sees none of them."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import batch, batches
from samples import jpeg, write_shard
from tiny_runs import write_config, write_corpus

from clipx.config import load
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.held_out import PartOfSource
from clipx.data.verify import verify
from clipx.training.config import TrainConfig
from clipx.training.trainer import train
from clipx.types import UserError

NUM = 300
KINDS = ("csv", "folder", "tar", "synthetic")


def write_products(folder: Path, names: list[str], *, rows_of: int = 3) -> Path:
    """products.csv with `;`, and a picture for each of `names`; `rows_of` of them are a product."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = ["picture;title;product_id"]
    for name in names:
        number = int(name[1:])
        (folder / f"pictures/{name}.jpg").write_bytes(jpeg(number))
        (folder / f"pictures/{name}.txt").write_text(f"title of {name}")
        lines.append(f"pictures/{name}.jpg;title of {name};{number // rows_of}")
    (folder / "products.csv").write_text("\n".join(lines) + "\n")
    return folder


def names(count: int = NUM) -> list[str]:
    return [f"p{n:03d}" for n in range(count)]


def table(folder: Path, **settings: Any) -> DataConfig:
    source = {"name": "table", "path": str(folder / "products.csv"), "separator": ";"}
    source["image_column"] = "picture"
    return DataConfig(sources={"products": source}, caption_field="title", **settings)


def config_of(kind: str, folder: Path, **settings: Any) -> DataConfig:
    if kind == "csv":
        return table(write_products(folder, names()), **settings)
    if kind == "folder":
        source = {"name": "folder", "path": str(write_products(folder, names()) / "pictures")}
    elif kind == "synthetic":
        source = {"name": "synthetic", "samples": NUM, "size": 24}
    else:
        samples = {name: {"jpg": jpeg(n), "txt": name} for n, name in enumerate(names())}
        for shard in range(3):
            part = {name: samples[name] for name in names()[shard::3]}
            write_shard(folder / f"{shard}.tar", part)
        source = {"name": "webdataset", "shards": str(folder)}
    return DataConfig(sources={"products": source}, **settings)


def identities(corpus: Corpus) -> list[str]:
    """Of all samples, in the order of the corpus."""
    found = []
    for source in corpus.sources.values():
        for shard, size in enumerate(source.sizes.tolist()):
            found += [source.identity(shard, n) for n in range(size)]
    return found


def sides(config: DataConfig) -> tuple[set[str], set[str]]:
    """Identities of the samples to train on, and of the held-out ones."""
    return set(identities(config.open(seed=0))), set(
        identities(config.open(seed=0, part="held_out"))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_any_source_are_the_whole_and_have_their_share(
    kind: str, tmp_path: Path
) -> None:
    config = config_of(kind, tmp_path, held_out=0.2)
    kept, held_out = sides(config)
    everything = identities(config.open(seed=0, part="all"))
    assert sorted(kept | held_out) == sorted(everything)
    assert not kept & held_out
    # Binomial: 60 of 300, with a standard deviation of 7.
    assert abs(len(held_out) - 60) < 4 * 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_reads_the_samples_of_the_whole(kind: str, tmp_path: Path) -> None:
    config = config_of(kind, tmp_path, held_out=0.3)
    whole = config.open(seed=0, part="all")
    raw_of = {}
    for number in range(NUM):
        raw = whole.read_raw(*whole.place_of(number))
        raw_of[raw.key] = raw
    seen = []
    for part in ("train", "held_out"):
        corpus = config.open(seed=0, part=part)
        for number in range(int(corpus.sizes.sum())):
            place = corpus.place_of(number)
            raw = corpus.read_raw(*place)
            assert raw == raw_of[raw.key]
            assert corpus.key(*place) == raw.key
            assert corpus.name(place[0]) == whole.name(place[0])
            seen.append(raw.key)
    assert sorted(seen) == sorted(raw_of)


def test_an_epoch_has_each_kept_sample_once_and_no_held_out_one(tmp_path: Path) -> None:
    config = config_of("csv", tmp_path, held_out=0.2)
    kept, held_out = sides(config)
    source = batches(
        None,
        sources=config.sources,
        caption_field="title",
        held_out=0.2,
        global_batch_size=len(kept),
    )
    for epoch in range(2):
        paths = [key.partition(":")[2] for key in batch(source, epoch).keys]
        assert sorted(paths) == sorted(kept)
        assert not held_out & set(paths)


def test_the_side_of_a_sample_does_not_depend_on_the_others(tmp_path: Path) -> None:
    _, held_out = sides(table(write_products(tmp_path / "a", names()), held_out=0.2))
    shuffled = names(400)
    random.Random(0).shuffle(shuffled)
    _, later = sides(table(write_products(tmp_path / "b", shuffled), held_out=0.2))
    first = {f"pictures/{name}.jpg" for name in names()}
    assert later & first == held_out
    assert len(later) > len(held_out)


def test_a_larger_share_only_adds_samples(tmp_path: Path) -> None:
    folder = write_products(tmp_path, names())
    _, tenth = sides(table(folder, held_out=0.1))
    _, half = sides(table(folder, held_out=0.5))
    assert tenth < half


def test_a_field_keeps_its_samples_together(tmp_path: Path) -> None:
    config = table(write_products(tmp_path, names()), held_out=0.2, held_out_by="product_id")
    kept, held_out = sides(config)

    def products(paths: set[str]) -> set[int]:
        return {int(path[10:13]) // 3 for path in paths}

    assert held_out
    assert not products(kept) & products(held_out)
    # By the key, pictures of a product do fall on both sides, so that the setting matters.
    kept, held_out = sides(dataclasses.replace(config, held_out_by=None))
    assert products(kept) & products(held_out)


def test_a_field_of_json_members_is_read_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    samples = {}
    for n in range(60):
        samples[f"k{n:02d}"] = {"jpg": jpeg(n), "json": {"caption": f"{n}", "product": n // 2}}
    write_shard(tmp_path / "s/0.tar", samples)
    config = DataConfig(shards=str(tmp_path / "s"), held_out=0.3, held_out_by="product")
    kept, held_out = sides(config)
    assert {int(key[1:]) // 2 for key in kept}.isdisjoint({int(key[1:]) // 2 for key in held_out})
    (store,) = (tmp_path / "cache").rglob("held_out/*.npy")
    assert np.load(store).shape == (60,)
    assert sides(config) == (kept, held_out)


def test_a_sample_without_the_field_counts_by_itself(tmp_path: Path) -> None:
    folder = write_products(tmp_path, names())
    lines = (folder / "products.csv").read_text().splitlines()
    without = [line.rpartition(";")[0] + ";" for line in lines[-60:]]
    (folder / "products.csv").write_text("\n".join([*lines[:-60], *without]))
    _, by_product = sides(table(folder, held_out=0.2, held_out_by="product_id"))
    _, by_key = sides(table(folder, held_out=0.2))
    last = {f"pictures/{name}.jpg" for name in names()[-60:]}
    assert by_product & last == by_key & last != set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": 1e-6}, "none of the 300 samples of products is held out"),
        ({"held_out": 0.999999}, "all 300 samples of products are held out"),
        ({"held_out_by": "product_id"}, r"without data\.held_out"),
        ({"held_out": 0.1, "held_out_by": "sku"}, "no sample of products has it; .*product_id"),
        ({"held_out": 0.1, "held_out_by": "shop"}, "none of the 1 values of 'shop'"),
    ],
)
def test_parts_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_products(tmp_path, names())
    lines = (folder / "products.csv").read_text().splitlines()
    lines = [f"{line};{'one shop' if number else 'shop'}" for number, line in enumerate(lines)]
    (folder / "products.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        table(folder, **settings).open(seed=0)


def test_the_part_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set data\.held_out"):
        table(write_products(tmp_path, names(9))).open(seed=0, part="held_out")


def test_nothing_changes_without_the_setting(tmp_path: Path) -> None:
    config = table(write_products(tmp_path, names(9)))
    (source,) = config.open_sources().values()
    assert not isinstance(source, PartOfSource)


def test_the_digest_covers_the_choice_alone(tmp_path: Path) -> None:
    folder = write_products(tmp_path, names())
    whole = table(folder).open(seed=0).digest
    tenth = table(folder, held_out=0.1).open(seed=0)
    assert tenth.digest == table(folder, held_out=0.1).open(seed=0).digest
    others = [whole, table(folder, held_out=0.2).open(seed=0).digest]
    others.append(table(folder, held_out=0.1, held_out_by="product_id").open(seed=0).digest)
    others.append(table(folder, held_out=0.1).open(seed=0, part="held_out").digest)
    assert len({tenth.digest, *others}) == 5


def test_verify_looks_at_both_parts(tmp_path: Path) -> None:
    folder = write_products(tmp_path, names(60))
    config = table(folder, held_out=0.3)
    _, held_out = sides(config)
    broken = min(held_out)
    (folder / broken).write_bytes(b"no picture")
    corpus = config.open(seed=0, part="all")
    bad = list(verify(config, corpus, workers=0, advance=lambda count: None))
    assert [sample.key.partition(":")[2] for sample in bad] == [broken]


def test_a_resumed_run_with_another_share_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    path = write_config(tmp_path, corpus, duration="2 steps", checkpoint_every="2 steps")
    train(load(TrainConfig, path, ["data.held_out=0.2"]))
    with pytest.raises(UserError, match=r"belongs to another config: data\.held_out differ"):
        train(load(TrainConfig, path, ["data.held_out=0.3", "duration=3 steps"]))
    # With the permission to change the corpus it goes on, and names the change.
    overrides = ["data.held_out=0.3", "duration=3 steps", "data.accept_changed_corpus=true"]
    state = train(load(TrainConfig, path, overrides))
    assert state.step == 3
