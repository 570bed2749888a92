"""A corpus with repeated pictures, embedded once for the tests of several verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from embedded import embed_corpus
from samples import encoded, picture, png, write_shard

from clipx.search.query import Index

NUM_DISTINCT = 18
REPEATS = {"r00": 3, "r01": 3, "r02": 11}
"""Key -> number of the picture that it repeats; r01 is its pixels at three times the size."""


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of 21 samples in two shards, d03 = r00 = r01 and d11 = r02; d05 has no caption."""
    folder = tmp_path_factory.mktemp("collection")
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
    return embed_corpus(folder, "--precision", "fp32", "--dtype", "float32", "data.workers=0")


@pytest.fixture(scope="session")
def collected(collection: Path) -> Index:
    return Index.open(collection)
