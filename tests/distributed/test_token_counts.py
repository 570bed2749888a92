"""The bag-of-tokens head of R ranks is that of one process with all rows."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import RankGroup
from token_checks import LOCAL_ROWS, steps, train

from clipx.distributed.pool import PoolConfig


@pytest.mark.parametrize("kind", ["local", "gathered", "ring"])
def test_counts_and_gradients_equal_those_of_one_process(group: RankGroup, kind: str) -> None:
    """Also where ranks pad their captions to different lengths."""
    size = group.world_size
    expected = steps(0, 1, size * LOCAL_ROWS, PoolConfig())
    ranks = group(train, kind)
    for rank in ranks:
        assert rank["num_captions"] == expected["num_captions"] == 2 * size * LOCAL_ROWS
        assert rank["captions_with"] == expected["captions_with"]
    assert sum(rank["loss"] for rank in ranks) / size == pytest.approx(expected["loss"], rel=1e-5)
    mean = np.mean([rank["gradient"] for rank in ranks], axis=0)
    np.testing.assert_allclose(mean, expected["gradient"], rtol=1e-4, atol=1e-7)
