"""One rank asks the file system for the corpus; all have it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks
from samples import write_corpus

from clipx.config import load
from clipx.data.config import GroupConfig
from clipx.data.sources import webdataset
from clipx.distributed.runtime import Runtime
from clipx.training import corpus as corpora
from clipx.training.config import TrainConfig
from clipx.training.corpus import open_together
from clipx.types import UserError

FOLDER = "CLIPX_TEST_CORPUS"  # in the environment, for a spawned rank gets no arguments


def opened(runtime: Runtime) -> dict[str, Any]:
    """What each rank has of a good corpus, and what it is told of a missing one."""
    folder = os.environ[FOLDER]
    requested: list[str] = []
    expand, open_catalog = webdataset.expand, webdataset.open_catalog
    vars(webdataset)["expand"] = lambda *a, **k: (requested.append("expand"), expand(*a, **k))[1]
    vars(webdataset)["open_catalog"] = lambda *a: (requested.append("open"), open_catalog(*a))[1]
    corpus = open_together(_config(folder, 4), runtime)
    located = corpus.locate(np.arange(20))
    faults = []
    for shards, size in ((f"{folder}/missing", 4), (folder, 5)):
        try:
            open_together(_config(shards, size), runtime)
        except UserError as error:
            faults.append(str(error))
    return {
        "asked": requested,
        "digest": corpus.digest,
        "order": [located.shard.tolist(), located.sample.tolist()],
        "read": corpus.read(2, 3).key,
        "faults": faults,
    }


def grouped(runtime: Runtime) -> dict[str, Any]:
    """What each rank has of a corpus whose captions are its concepts."""
    folder = os.environ[FOLDER]
    read: list[int] = []
    read_concepts = corpora.read_concepts

    def recording(*arguments: Any) -> np.ndarray:
        read.append(runtime.rank)
        return read_concepts(*arguments)

    vars(corpora)["read_concepts"] = recording
    config = _config(folder, 4)
    data = replace(config.data, group=GroupConfig(by="caption", size=2))
    corpus = open_together(replace(config, data=data), runtime)
    located = corpus.locate(np.arange(40))
    return {
        "read": read,
        "order": [located.shard.tolist(), located.sample.tolist()],
        "message": corpus.messages[-1],
    }


def _config(shards: str, global_batch_size: int) -> TrainConfig:
    overrides = [
        f"data.shards={shards}",
        f"global_batch_size={global_batch_size}",
        "run_dir=nowhere",
        "duration=1 steps",
        "model.name=ViT-B-32",
    ]
    return load(TrainConfig, None, overrides)


def test_one_rank_asks_the_file_system_and_all_have_the_same_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus")
    monkeypatch.setenv(FOLDER, str(tmp_path / "corpus"))
    first, second = run_ranks(opened, 2)
    assert first.pop("asked") == ["expand", "open", "expand"]
    assert second.pop("asked") == []
    assert first == second
    assert first["read"] == "k09"
    missing, split = first["faults"]
    assert "missing does not exist" in missing
    assert split == "global_batch_size 5 is not a multiple of 2 ranks; the nearest that fits is 4"


def test_one_rank_reads_the_concepts_and_all_have_the_same_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus")
    monkeypatch.setenv(FOLDER, str(tmp_path / "corpus"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = run_ranks(grouped, 2)
    assert (first["read"], second["read"]) == ([0], [])
    assert first["order"] == second["order"]
    # Thirteen different captions, each its own partner.
    assert first["message"].startswith(
        "13 concepts in groups of 2: an epoch has 26 positions for 13"
    )
    shards, samples = first["order"]
    assert (shards[::2], samples[::2]) == (shards[1::2], samples[1::2])
