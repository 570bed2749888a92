from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import rank_checks
from ranks import RankGroup, run_ranks

SIZES = [2, 3, pytest.param(4, marks=pytest.mark.slow)]
ONE = pytest.param(1, marks=pytest.mark.slow)  # which most other tests have


@pytest.fixture(scope="session", params=SIZES, ids=lambda size: f"{size} ranks")
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What `rank_checks.everything` found on each rank: one launch for each world size."""
    return run_ranks(rank_checks.everything, request.param)


@pytest.fixture(scope="session", params=[ONE, *SIZES], ids=lambda size: f"{size} ranks")
def group(request: pytest.FixtureRequest) -> Iterator[RankGroup]:
    """Ranks that wait for questions."""
    group = RankGroup(request.param)
    yield group
    group.close()
