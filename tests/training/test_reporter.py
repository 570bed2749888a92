"""What a person sees of a run, on terminals of several widths and in a log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from screens import as_terminal, rendered

from clipx.config import load
from clipx.training.closing import closing_text
from clipx.training.config import TrainConfig
from clipx.training.logging import Reporter

WIDTHS = [40, 80, 120, 200]


def record(step: int) -> dict[str, Any]:
    """A log line with everything that it may contain."""
    return {
        "step": step,
        "train/loss": 4.0 - step / 1000,
        "train/scale": 14.29,
        "train/image_to_text_accuracy": 0.125,
        "train/grad_norm": 1.234,
        "train/lr": 5e-4,
        "train/samples_per_second": 812.4,
        "train/clamped_steps": 0,
        "skipped_steps": 0,
        "overflowed_steps": 0,
        "data_wait_fraction": 0.03,
        "memory_gib": 1.25,
    }


@contextmanager
def reporter(total_steps: int, *, show: bool = True) -> Iterator[Reporter]:
    """Closed in every case, since a bar has a thread that draws it."""
    report = Reporter(total_steps=total_steps, first_step=0, show=show)
    try:
        yield report
    finally:
        report.close()


def run_steps(report: Reporter, first: int, last: int) -> None:
    for step in range(first + 1, last + 1):
        report.step(step)
        if step % 20 == 0:
            report.log(record(step))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_stays_below_the_lines_that_scroll(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    terminal = as_terminal(monkeypatch, width)
    with reporter(2000) as report:
        report.say("96 pairs in 4 shards")
        run_steps(report, 0, 60)
    *lines, bar = rendered(terminal.getvalue(), width)
    assert lines[0] == "96 pairs in 4 shards"
    # A line for each log step, in full: its beginning fits even where parts are left out.
    assert [line[:23] for line in lines[1:]] == [
        "step   20  loss 3.9800 ",
        "step   40  loss 3.9600 ",
        "step   60  loss 3.9400 ",
    ]
    assert all("samples/s" in line for line in lines[1:])
    assert not any("…" in line for line in lines)
    # Bar, step and time left come first and are never cut; then the loss.
    start = bar.lstrip("━╺╸ ")
    assert start.startswith("step 60/2,000 0:0")
    assert " left" in start
    if width >= 80:
        assert start.endswith("left loss 3.9400  812 samples/s")
    assert cell_len(bar) <= width


def test_a_wide_terminal_shows_all_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch, 120)
    with reporter(2000) as report:
        report.log(record(20))
    assert rendered(terminal.getvalue(), 120)[0] == (
        "step   20  loss 3.9800  scale 14.29  accuracy 12%  gradient 1.23  lr 0.0005  "
        "812 samples/s  data wait 3%  1.2 GiB"
    )


def test_an_evaluation_is_named_beside_the_bar_while_it_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = as_terminal(monkeypatch, 80)
    with reporter(100) as report:
        run_steps(report, 0, 20)
        report.step(20, "evaluating colors")
        report.say("a message draws the bar again")
        assert rendered(terminal.getvalue(), 80)[-1].endswith("left evaluating colors")
        report.step(20)
    assert rendered(terminal.getvalue(), 80)[-1].endswith("left loss 3.9800  812 samples/s")


def test_alarms_and_skipped_steps_are_shown_at_every_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = as_terminal(monkeypatch, 50)
    with reporter(100) as report:
        monkeypatch.setattr("clipx.training.logging.alarms", lambda record: ["features collapse"])
        report.log(record(20) | {"skipped_steps": 2})
    lines = rendered(terminal.getvalue(), 50)
    assert lines[0] == "step  20  loss 3.9800  (2 skipped)  812 samples/s"
    assert lines[1] == "features collapse"


@pytest.mark.parametrize("variable", [None, "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_log_has_plain_lines_without_control_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    with reporter(40) as report:
        report.say("a long message " * 20)
        run_steps(report, 0, 40)
    output = capsys.readouterr().err
    assert "\x1b" not in output
    assert "\r" not in output
    message, first, last = output.splitlines()
    assert message == "a long message " * 20
    assert first.startswith("step 20/40  loss 3.9800  scale 14.29  accuracy 12%  gradient 1.23")
    assert last.endswith("1.2 GiB  0:00:00 left")


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(40, show=False) as report:
        report.say("a message")
        run_steps(report, 0, 40)
    assert capsys.readouterr().err == ""


@pytest.fixture
def run(tmp_path: Path) -> TrainConfig:
    """The config of a finished run of 40 steps, with its log files."""
    losses = [3.5, 2.0, 2.25]
    steps = [20, 30, 40]
    accuracies = [0.25, 0.75, 0.75]
    metrics = ""
    results = ""
    for step, loss, accuracy in zip(steps, losses, accuracies, strict=True):
        metrics += json.dumps({"step": step, "train/loss": loss}) + "\n"
        values = {"colors-zeroshot-top1": accuracy, "colors-zeroshot-ece": 0.9}
        results += json.dumps({"step": step, **values}) + "\n"
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(metrics + '{"step": 41, "train/loss": NaN}\n')
    (folder / "results.jsonl").write_text(results)
    settings = [
        f"run_dir={folder}",
        "data.shards=x",
        "model.name=x",
        "duration=40 steps",
        "global_batch_size=8",
        "evaluators.colors={name: zero_shot, path: x}",
    ]
    return load(TrainConfig, None, settings)


def test_the_end_names_the_folder_the_best_figures_and_the_next_command(run: TrainConfig) -> None:
    text = closing_text(run, first_step=0, total=40, seconds=83.2)
    assert text.splitlines() == [
        f"finished 40 steps in 0:01:23: {run.run_dir}",
        "  loss 2.2500, lowest 2.0000 at step 30",
        "  colors-zeroshot-top1 75.00% at step 30",
        f"next: clipx report '{run.run_dir}'",
    ]


def test_a_finished_run_that_is_started_again_says_so(run: TrainConfig) -> None:
    text = closing_text(run, first_step=40, total=20, seconds=1.0)
    assert text.splitlines()[:2] == [
        f"already finished with 40 of 20 steps: {run.run_dir}",
        "  a longer duration= continues this run, another run_dir= starts a new one",
    ]


def test_a_run_without_test_sets_and_logs_is_to_be_measured_next(
    run: TrainConfig, tmp_path: Path
) -> None:
    bare = load(
        TrainConfig,
        None,
        [
            f"run_dir={tmp_path}/bare",
            "data.shards=x",
            "model.name=x",
            "duration=1 epochs",
            "global_batch_size=8",
        ],
    )
    assert closing_text(bare, first_step=0, total=40, seconds=0.0).splitlines() == [
        f"finished 40 steps in 0:00:00: {tmp_path}/bare",
        f"next: clipx eval {tmp_path}/bare --set TEST_SET",
    ]
