"""Pairs and mined negatives on R ranks are as in one process, value and gradient."""

from __future__ import annotations

import numpy as np
import pytest
from pair_checks import PairCase, case_of, in_one_process, train_pairs
from ranks import RankGroup

from clipx.data.sample import PairKind


@pytest.mark.parametrize(("loss", "queue"), [("infonce", 5), ("multi_positive", 0)])
@pytest.mark.parametrize("pool", ["gathered", "chunked", "ring"])
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_ranks_equal_one_process(
    group: RankGroup, kind: PairKind, pool: str, loss: str, queue: int
) -> None:
    assert_ranks_equal_one_process(group, case_of(kind, loss, pool, queue))


@pytest.mark.parametrize(("loss", "queue"), [("infonce", 5), ("matryoshka", 0)])
@pytest.mark.parametrize("pool", ["gathered", "chunked", "ring"])
def test_mined_negatives_reach_the_images_of_all_ranks(
    group: RankGroup, pool: str, loss: str, queue: int
) -> None:
    assert_ranks_equal_one_process(group, case_of(None, loss, pool, queue))


def assert_ranks_equal_one_process(group: RankGroup, given: PairCase) -> None:
    expected = in_one_process(given, group.world_size)
    ranks = group(train_pairs, given)
    mean = sum(rank["loss"] for rank in ranks) / len(ranks)
    assert mean == pytest.approx(expected["loss"], rel=1e-10)
    for rank in ranks:
        assert rank["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            np.testing.assert_allclose(
                rank["gradients"][name], gradient, rtol=1e-10, atol=1e-12, err_msg=name
            )
