"""A loss of the user's own, in a module outside of clipx, over the primitives."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import metrics, train

MODULE = """
from torch.nn.functional import relu

from clipx.config import config
from clipx.losses.primitives import nearest_candidates
from clipx.types import Loss, LossOutput


@config
class Config:
    margin: float = 0.2

    def build(self):
        return Triplet(self.margin)


class Triplet(Loss):
    def __init__(self, margin):
        self.margin = margin

    def __call__(self, image, text, *, pool, **_):
        positive = (image * text).sum(-1)
        hardest = nearest_candidates(image, text, pool, 1)[:, 0]
        return LossOutput(relu(self.margin - positive + hardest).mean())
"""


def test_it_trains_on_two_processes_in_micro_batches_as_on_one(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It logs no accuracy and uses no temperature."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/triplet.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ("loss={name: my_lab.triplet, margin: 0.3}", "duration=20 steps")
    one, two = tmp_path / "one", tmp_path / "two"
    train(config, f"run_dir={one}", *settings)
    done = train(config, f"run_dir={two}", *settings, "micro_batch_size=4", processes=2)
    assert "step 20/20  loss" in done.stderr
    pairs = list(zip(metrics(one), metrics(two), strict=True))
    for first, second in pairs:
        assert first["fingerprint"] == second["fingerprint"]
        for key in ("train/loss", "train/grad_norm", "train/scale"):
            # float32 sums in another order; the hardest negative may change with them, late
            assert second[key] == pytest.approx(first[key], rel=1e-3, abs=1e-6), first["step"]
        assert "train/image_to_text_accuracy" not in first
    assert pairs[-1][0]["train/loss"] < 0.8 * pairs[0][0]["train/loss"], "it did learn"
