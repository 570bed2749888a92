"""The held-out drawings of `emoji-fluent-retrieval`, for text_pairs.py and truncated.py."""

from __future__ import annotations

import tarfile
from collections import defaultdict
from pathlib import Path

from torch import Tensor

from clipx import metrics

FOLDER = Path("data/demo/eval/emoji-fluent-retrieval/test")
COLUMNS = ("recall@1", "95 %", "recall@10", "95 %")


def read_samples(folder: Path) -> list[dict[str, bytes]]:
    """The members of each sample by their ending."""
    samples: dict[str, dict[str, bytes]] = defaultdict(dict)
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                file = tar.extractfile(member)
                if file is not None:
                    samples[key][kind] = file.read()
    return list(samples.values())


def recalls(similarity: Tensor) -> tuple[dict[str, float], list[str]]:
    """(recall@1 and recall@10, cells of COLUMNS). similarity: (N, N), whose diagonal is right"""
    # A tie counts against the answer.
    rank = (similarity >= similarity.diagonal()[:, None]).sum(1) - 1
    figures: dict[str, float] = {}
    cells = []
    for k in (1, 10):
        hits = (rank < k).double()
        figures[f"recall@{k}"] = round(hits.mean().item(), 4)
        low, high = metrics.rate_interval(hits) or (float("nan"), float("nan"))
        cells += [f"{hits.mean():.1%}", f"{low:.1%} to {high:.1%}"]
    return figures, cells
