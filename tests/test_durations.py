"""Durations: how long a training is, in steps."""

from __future__ import annotations

import pytest

from clipx.durations import Duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [  # batches of 8 from a corpus of 100 samples
        ("2000 steps", 2000),
        ("1 step", 1),
        ("2k steps", 2000),
        (" 0.5k steps ", 500),
        (".5M samples", 62_500),
        ("400M samples", 50_000_000),
        ("1B samples", 125_000_000),
        ("2 epochs", 25),
        ("1 epoch", 12),  # 12.5: round half to even
        ("3epochs", 38),  # 37.5
        ("1 sample", 1),  # never 0
    ],
)
def test_duration_in_steps(text: str, steps: int) -> None:
    assert Duration.parse(text).steps(global_batch_size=8, epoch_samples=100) == steps


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "9999999999B samples",
        "steps",
        "0 steps",
        "-1 steps",
        "1e3 steps",
        "5 hours",
        "9" * 400 + " steps",
    ],
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write for example '2000 steps'"):
        Duration.parse(text)
