"""Verification lists what training would put into quarantine, in the order of the corpus."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import pair, write_shard

from clipx.data import verify as module
from clipx.data.config import DataConfig
from clipx.data.verify import verify

SIZES = (7, 0, 1, 12, 5)
BAD = {"k00", "k06", "k07", "k08", "k13", "k24"}  # at the ends of shards and of chunks


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    keys = iter(f"k{n:02d}" for n in range(sum(SIZES)))
    for shard, size in enumerate(SIZES):
        samples = {next(keys): pair(0) for _ in range(size)}
        for key in BAD & samples.keys():
            samples[key] = {"png": b"<html>", "txt": "x"}
        write_shard(tmp_path / f"{shard}.tar", samples)
    return tmp_path


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on 1 core
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("chunk", [1, 5, 7, 200])
def test_the_bad_samples_are_listed_for_any_workers_and_chunks(
    faulty: Path, monkeypatch: pytest.MonkeyPatch, workers: int, chunk: int
) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    config = DataConfig(shards=str(faulty), max_bad_fraction=1.0)
    counts: list[int] = []
    corpus = config.open(seed=0)
    bad = list(verify(config, corpus, workers=workers, advance=counts.append))
    assert [sample.key for sample in bad] == sorted(BAD)
    assert [sample.shard for sample in bad] == [
        str(faulty / f"{shard}.tar") for shard in (0, 0, 2, 3, 3, 4)
    ]
    assert {(sample.stage, sample.position) for sample in bad} == {("image", -1)}
    assert sum(counts) == sum(SIZES)
    assert max(counts) == min(chunk, max(SIZES))
