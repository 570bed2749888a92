"""A corpus with repeated pictures, embedded once for the tests of several verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_checkpoints
import torch
from samples import encoded, picture, png, write_shard
from tiny_runs import MODEL

from clipx import cli
from clipx.models.dual_encoder import DualEncoder
from clipx.search.query import Index

NUM_DISTINCT = 18
REPEATS = {"r00": 3, "r01": 3, "r02": 11}
"""Key -> number of the picture that it repeats; r01 is its pixels at three times the size."""


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of 21 samples in two shards, d03 = r00 = r01 and d11 = r02; d05 has no caption."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("collection")
    model = small_checkpoints.save(folder / "m", 1, model=DualEncoder(MODEL), model_json=MODEL)
    first: dict[str, Any] = {}
    for n in range(NUM_DISTINCT):
        color = "red" if n % 2 else "blue"
        first[f"d{n:02d}"] = {
            "png": png(n, (32, 32)),
            "json": {"captions": [f"a {color} thing {n}"], "shop": color},
        }
    first["d05"].pop("json")
    second: dict[str, Any] = {}
    for key, number in REPEATS.items():
        image = picture(number, (32, 32))
        if key == "r01":
            image = image.resize((96, 96), 0)
        second[key] = {"png": encoded(image, "PNG"), "txt": f"again {number}"}
    write_shard(folder / "corpus/0.tar", first)
    write_shard(folder / "corpus/1.tar", second)
    out = folder / "out"
    settings = ["--precision", "fp32", "--dtype", "float32", "data.workers=0"]
    cli.main(["embed", str(model), str(folder / "corpus"), "--out", str(out), *settings])
    return out


@pytest.fixture(scope="session")
def collected(collection: Path) -> Index:
    return Index.open(collection)
