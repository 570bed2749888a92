"""A run whose features collapse."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import metrics, train

from clipx.report.write import write_report

ATTRACTION = """
from clipx.config import config
from clipx.types import Loss, LossOutput


@config
class Config:
    def build(self):
        return Attraction()


class Attraction(Loss):
    def __call__(self, image, text, **_):
        return LossOutput((image - text).square().sum(1).mean())
"""


def test_a_run_that_collapses_says_so_in_its_log_and_its_report(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss without negatives pulls all rows to one point."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/attraction.py").write_text(ATTRACTION)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    settings = ("loss=my_lab.attraction", "optim.lr=0.01", "global_batch_size=32")
    done = train(config, f"run_dir={run}", *settings, "duration=20 steps", "log_every=1 steps")
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("step 20/20 ")]
    assert "features collapse: deviation" in last
    deviations = [record["features/image/deviation"] for record in metrics(run)]
    assert deviations[-1] < 0.05 < deviations[0]
    page = write_report(run).read_text()
    assert "features collapse: deviation 0.0" in page
    assert "alarms since step" in page
    assert "Effective rank of features" in page
