"""A layout in place of UMAP, which numba compiles for 10 to 30 s in each process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipx.search import projection


def plane(rows: np.ndarray, seed: int, progress: Any) -> np.ndarray:
    """(U, D) rows -> (U, 2): their principal components."""
    left, singular, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    return left[:, :2] * singular[:2]


def replace_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_umap", plane)
    monkeypatch.setattr(projection, "import_umap", lambda: None)
