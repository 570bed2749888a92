"""All ranks act alike on an event of one of them."""

from __future__ import annotations

from pathlib import Path

import torch
from agreement_checks import interrupted, resumed, signaled
from ranks import RankGroup

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints.format import About, Training, TrainState

MODEL = {"vision_cfg": {}, "text_cfg": {}}


def test_a_signal_to_one_rank_stops_all_while_features_are_cached(group: RankGroup) -> None:
    for outcome in group(interrupted, False):
        assert outcome.startswith("Stopped: stopped by SIGTERM while features are cached")
    for outcome in group(interrupted, True):
        assert outcome == "UserError: cache_features features cannot be written: full"


def test_a_signal_to_one_rank_before_the_first_step_stops_all(group: RankGroup) -> None:
    expected = "stopped by SIGHUP before the first step of this start"
    assert group(signaled, True) == [expected] * group.world_size
    assert group(signaled, False) == ["goes on"] * group.world_size


def test_a_checkpoint_that_one_rank_cannot_read_is_skipped_by_all(
    group: RankGroup, tmp_path: Path
) -> None:
    for step in (1, 2):
        state = TrainState(step=step, corpus_digest="ab")
        weights = {"weight": torch.zeros(2)}
        folder = tmp_path / "checkpoints"
        checkpoints.save(folder, state, weights, Training({}, []), About(MODEL))
    for step, messages in group(resumed, tmp_path):
        assert step == 1
        assert "step_00000002 cannot be read: gone; it is skipped" in messages[0]
