"""Vectors that stay on the disk are those that are read whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipx.search.vectors import map_files

SIZES = (3, 0, 5, 1)


@pytest.mark.parametrize(
    "numbers", [[], [0], [8], [2, 3], [0, 1, 2], [3, 7], [0, 4, 5, 8], list(range(9))]
)
def test_rows_are_taken_across_files(tmp_path: Path, numbers: list[int]) -> None:
    random = np.random.default_rng(0)
    whole = random.uniform(-1, 1, (sum(SIZES), 4)).astype(np.float16)
    files = []
    for place, part in enumerate(np.split(whole, np.cumsum(SIZES)[:-1])):
        files.append(tmp_path / f"{place}.npy")
        np.save(files[-1], part)
    vectors = map_files(files)
    assert all(isinstance(part, np.memmap) for part in vectors.parts if len(part))
    assert (len(vectors), vectors.width) == whole.shape
    taken = vectors.take(np.array(numbers, dtype=np.int64))
    assert taken.dtype == whole.dtype
    assert np.array_equal(taken, whole[numbers])
