"""What a user is told of a run that goes wrong, and what the log lines have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import metrics, run_clipx, write_config

from clipx import cli

BLOWS_UP = ["optim.lr=1e30", "optim.warmup=1 steps", "optim.clip_grad_norm=null"]


def test_a_log_line_has_what_tells_a_healthy_run(undisturbed: Path) -> None:
    records = [
        json.loads(text) for text in (undisturbed / "metrics.jsonl").read_text().splitlines()
    ]
    names = {"loss", "scale", "grad_norm", "image_to_text_accuracy", "lr", "samples_per_second"}
    for record in records:
        assert {f"train/{name}" for name in names} < record.keys()
        assert record["train/clamped_steps"] == 0
        assert (record["skipped_steps"], record["overflowed_steps"]) == (0, 0)
        assert 0 < record["memory_gib"] < 16
        assert 0 <= record["data_wait_fraction"] <= 1


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_without_finite_numbers_stops_and_names_samples(
    processes: int, pairs: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, pairs, checkpoint_every="1 steps")
    done = run_clipx("train", config, "max_nonfinite_steps=3", *BLOWS_UP, processes=processes)
    assert done.returncode != 0
    assert 'Traceback (most recent call last):\n  File "/work' not in done.stderr
    assert done.stderr.count("3 steps in a row had no finite loss") == 1, done.stderr
    written = [
        json.loads(text) for text in (tmp_path / "run/nonfinite.jsonl").read_text().splitlines()
    ]
    assert len({line["step"] for line in written}) == 3
    assert {line["rank"] for line in written} == set(range(processes))
    assert all(len(line["keys"]) == 24 // processes for line in written)
    state = sorted((tmp_path / "run/checkpoints").iterdir())[-1] / "state.json"
    counts = json.loads(state.read_text())
    assert counts["skipped_steps"] == counts["nonfinite_in_a_row"] == 2
    assert counts["position"] == 24 * counts["step"], "the data goes on past a skipped step"


def test_a_wide_clamp_is_counted(pairs: Path, tmp_path: Path) -> None:
    """From a scale at its limit, every step that would raise it is clamped."""
    config = write_config(tmp_path, pairs, duration="4 steps", log_every="4 steps")
    model = json.loads((tmp_path / "model.json").read_text()) | {"init_logit_scale": 9.0}
    (tmp_path / "model.json").write_text(json.dumps(model))
    cli.main(["train", str(config)])
    (record,) = metrics(tmp_path / "run")
    assert 1 <= record["train/clamped_steps"] <= 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["micro_batch_size=7"],
            "24 is not a multiple of 1 ranks x micro_batch_size 7; the nearest that fits is 21",
        ),
        (["ema=1.0"], "ema"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    overrides: list[str],
    message: str,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, pairs)
    with pytest.raises(SystemExit):
        cli.main(["train", str(config), *overrides])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
