from __future__ import annotations

from typing import Any

import pytest
import rank_checks
from run_ranks import run_ranks

SIZES = [2, 3, pytest.param(4, marks=pytest.mark.slow)]


@pytest.fixture(scope="session", params=SIZES, ids=lambda size: f"{size} ranks")
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What `rank_checks.everything` found on each rank: one launch for each world size."""
    return run_ranks(rank_checks.everything, request.param)
