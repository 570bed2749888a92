"""Evaluators of a run measure on the corpus that the run has open, and open no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples import jpeg, write_shard
from tiny_runs import write_config, write_corpus

from clipx.config import build, load
from clipx.data.config import DataConfig
from clipx.data.sources.webdataset import Webdataset, close_shards
from clipx.evaluators import knn, retrieval
from clipx.evaluators.sample_source import PartOfRun, open_samples, with_held_out
from clipx.training.config import TrainConfig
from clipx.training.trainer import train
from clipx.types import UserError


def config(module: Any, **values: Any) -> Any:
    return build(module.Config, values, where="of the test")


def corpus(folder: Path, names: str) -> DataConfig:
    """A shard with a sample for each letter."""
    samples = {}
    for number, name in enumerate(names):
        samples[name] = {"jpg": jpeg(number), "txt": name, "json": {"kind": f"{number % 2}"}}
    write_shard(folder / "0.tar", samples)
    close_shards()  # as at the end of hashing: a changed shard is opened anew
    return DataConfig(shards=str(folder), held_out=0.4, caption_field="txt")


def test_a_run_hashes_each_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its start, the check of its evaluators, and six evaluations."""
    identities = []
    identity = Webdataset.identity

    def recorded(self: Webdataset, shard: int, sample: int) -> str:
        identities.append((shard, sample))
        return identity(self, shard, sample)

    monkeypatch.setattr(Webdataset, "identity", recorded)
    evaluators = {}
    for name in ("first", "second"):
        evaluators[name] = {"name": "retrieval", "source": "held_out", "every": "2 steps"}
    path = write_config(
        tmp_path, write_corpus(tmp_path / "corpus"), duration="4 steps", evaluators=evaluators
    )
    settings = ["data.held_out=0.25", "data.caption_field=txt", "evaluate_at_start=true"]
    train(load(TrainConfig, path, settings))
    assert len(identities) == len(set(identities)) == 96


def test_the_parts_beside_an_open_corpus_are_those_that_are_opened_anew(tmp_path: Path) -> None:
    data = corpus(tmp_path, "abcdefghijklmnopqrst")
    opened = PartOfRun(data, opened=data.open_sources("train"))
    for beside, anew in (
        (opened, data.open(seed=0, part="held_out")),
        (opened.rest(), data.open(seed=0, part="train")),
    ):
        keys = [f"0.tar/{anew.key(*anew.place_of(n))}" for n in range(int(anew.sizes.sum()))]
        assert open_samples(beside).keys == keys


def test_all_evaluators_share_one_part(tmp_path: Path) -> None:
    evaluators = {
        "pairs": config(retrieval, source="held_out"),
        "probe": config(knn, source="held_out", label_field="kind", k=1),
    }
    resolved = with_held_out(evaluators, corpus(tmp_path, "abcdefghijklmnopqrst"))
    assert resolved["pairs"].source is resolved["probe"].source
    train_set = resolved["probe"].build().train
    assert resolved["pairs"].source.trained["shards"].sizes.sum() == len(train_set)


def test_a_corpus_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    evaluators = {"pairs": config(retrieval, source="held_out")}
    data = corpus(tmp_path, "abcdefghijklmnopqrst")
    before = with_held_out(evaluators, data)
    keys = before["pairs"].build().set.images.keys
    corpus(tmp_path, "abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(UserError, match="has changed since it was indexed"):
        before["pairs"].build()
    # The next start opens it as it is then.
    after = with_held_out(evaluators, data)["pairs"].build().set.images.keys
    assert set(keys) < set(after)
