"""The file of a map."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_build_index import MANIFEST

from clipx.search.embedding_map import EmbeddingMap, map_file, open_map, write_map
from clipx.search.regions import RegionLabel
from clipx.types import UserError

COMPLETE = replace(MANIFEST, num_embedded=3)
DRAWN = EmbeddingMap(
    np.array([[-1, 0.5], [1, -0.25], [0, 0]], dtype=np.float32),
    [RegionLabel("a cat", 0.5, -0.125, 0, 3)],
)


def test_a_map_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_map(tmp_path, DRAWN, COMPLETE)
    found = open_map(tmp_path, COMPLETE)
    assert np.array_equal(found.points, DRAWN.points)
    assert found.labels == DRAWN.labels
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]


@pytest.mark.parametrize(
    "change", [{"model_digest": "ef"}, {"corpus_digest": "ef"}, {"num_embedded": 4}]
)
def test_a_map_of_other_embeddings_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    write_map(tmp_path, DRAWN, COMPLETE)
    with pytest.raises(UserError, match=r"belongs to 3 other embeddings.*`clipx index .* --map`"):
        open_map(tmp_path, replace(COMPLETE, **change))


def test_a_damaged_map_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no map; run `clipx index .* --map`"):
        open_map(tmp_path, COMPLETE)
    write_map(tmp_path, DRAWN, COMPLETE)
    whole = map_file(tmp_path).read_bytes()
    for damaged in (b"", whole[:-100], whole[:60], b"PK" + bytes(300)):
        map_file(tmp_path).write_bytes(damaged)
        with pytest.raises(UserError, match=r"map\.npz cannot be read: .*`clipx index .* --map`"):
            open_map(tmp_path, COMPLETE)
    with map_file(tmp_path).open("wb") as file:
        np.savez(file, points=DRAWN.points[:2], about=np.array(json.dumps({"labels": []})))
    with pytest.raises(UserError, match="cannot be read"):
        open_map(tmp_path, COMPLETE)
