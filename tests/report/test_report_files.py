"""The numbers on a report are those of the run's files, and a missing part is one line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from html_checks import checked

from clipx.report.charts import Point
from clipx.report.collect import read_record, scores_by_set
from clipx.report.model_outputs import ModelOutputs
from clipx.report.write import render
from clipx.types import UserError

METRICS = [
    {
        "step": step,
        "samples_seen": 100 * step,
        "epoch": step / 10,
        "train/loss": 4.0 - 0.125 * step,
        "train/image_to_text_accuracy": 0.05 * step,
        "train/samples_per_second": 50.0,
        "train/lr": 1e-3 / step,
        "train/grad_norm": 10.0**-step,
        "train/scale": 14.25 + step,
        "train/clamped_steps": 0,
        "train/odd_number": 7.0,
        "skipped_steps": 2 * (step > 2),
        "overflowed_steps": 0,
        "memory_gib": 1.5,
    }
    for step in range(1, 5)
]
RESULTS = [
    {
        "step": step,
        "pets-zeroshot-top1": 0.1 * step,
        "pets-zeroshot-top5": 0.2 * step,
        "pets-num_samples": 321,
        "pets-num_classes": 20,
        "pets-num_clusters": 107,
        "pets-zeroshot-top1_interval": [0.1 * step - 0.04, 0.1 * step + 0.05],
        "pets-and-owners-image_to_text_R@1": 0.3,
        "pets-and-owners-text_to_image_R@1": 0.25,
        "pets-and-owners-num_samples": 55,
        "pets-and-owners-num_captions": 110,
        "pets-and-owners-image_to_text_R@1_interval": [0.28, 0.33],
        "space-alignment": 1.25,
        "space-modality_gap": 0.75 / step,
        "space-num_samples": 55,
        "twins-auroc": 0.875,
        "twins-num_samples": 12,
    }
    for step in (2, 4)
]
BAD = [
    {
        "step": 3,
        "shard": "7.tar",
        "key": f"0{n}",
        "position": n,
        "stage": "image" if n < 3 else "caption",
        "error": "BadImage" if n < 3 else "Empty",
        "message": "truncated <b>& small</b>",
    }
    for n in range(5)
]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder without a checkpoint."""
    folder = tmp_path / "a<b>&c"
    folder.mkdir()
    (folder / "config.yaml").write_text("run_dir: x\nglobal_batch_size: 100\nseed: 3\n")
    write_lines(folder / "version.json", [{"clipx": "0.1", "torch": "2.9", "threads": 4}])
    write_lines(folder / "metrics.jsonl", METRICS)
    write_lines(folder / "results.jsonl", RESULTS)
    write_lines(folder / "quarantine.jsonl", BAD)
    line = {"step": 3, "rank": 1, "features": True, "keys": ["k<1>", "k2"]}
    write_lines(folder / "nonfinite.jsonl", [line])
    return folder


def report(run: Path) -> str:
    return render(read_record(run), ModelOutputs(model_error="no checkpoint <yet>"))


def test_each_logged_value_is_in_the_tooltip_of_its_step(run: Path) -> None:
    text = checked(report(run)).text
    for line in METRICS:
        heading = f"step {line['step']}, {line['samples_seen']} samples seen"
        assert f"{heading}\nloss: {line['train/loss']:.4g}" in text
        assert f"{heading}\nin-batch accuracy: {line['train/image_to_text_accuracy']:.1%}" in text
        assert f"{heading}\ngradient norm: {line['train/grad_norm']:.4g}" in text
        assert f"{heading}\nlogit scale: {line['train/scale']:.4g}" in text


def test_an_unknown_metric_gets_a_chart_too(run: Path) -> None:
    assert "Odd number" in checked(report(run)).text


def test_the_table_has_the_newest_values_with_their_intervals(run: Path) -> None:
    page = checked(report(run))
    start = page.texts.index("Zero-shot classification: value, 95 % interval, chance level")
    row = [t for t in page.texts[start : start + 40] if t]
    row = row[row.index("pets") :]
    expected = ["pets", "321", "in 107 clusters", "40.0%", "36.0% to 45.0%", "chance 5.0%"]
    assert row[:8] == [*expected, "80.0%", "chance 25.0%"]
    assert {"30.0%", "28.0% to 33.0%", "25.0%", "auroc", "0.875"} <= set(page.texts)


def test_rates_stand_beside_their_chance_level(run: Path) -> None:
    texts = checked(report(run)).texts
    start = texts.index("Retrieval: value, 95 % interval, chance level")
    # One of 55 images is right, and two of 110 captions.
    chances = [text for text in texts[start:] if re.match(r"chance \d", text)]
    assert chances == ["chance 1.8%", "chance 1.8%"]
    assert "pets chance 5.0%" in [" ".join(text.split()) for text in texts], "in its tile too"
    # A run of before results had the number of classes has no chance level, and no empty line.
    older = [{k: v for k, v in line.items() if "num_c" not in k} for line in RESULTS]
    write_lines(run / "results.jsonl", older)
    assert not any(re.search(r"chance \d", text) for text in checked(report(run)).texts)


def test_earlier_evaluations_are_points_of_a_curve_with_their_band(run: Path) -> None:
    text = checked(report(run)).text
    assert "step 2\ntop-1 accuracy: 20.0% (16.0% to 25.0%)\ntop-5 accuracy: 40.0%" in text
    assert "step 2\nmodality_gap: 0.375" in text


def test_a_set_that_was_not_evaluated_at_the_newest_step_shows_its_step(run: Path) -> None:
    assert "at step 2" not in checked(report(run)).texts
    late = {k: v for k, v in RESULTS[1].items() if not k.startswith("twins")}
    write_lines(run / "results.jsonl", [RESULTS[0], late])
    texts = checked(report(run)).texts
    assert texts[texts.index("twins") + 1] == "at step 2"
    assert texts.count("at step 2") == 1


def test_scores_belong_to_the_longest_name_of_a_set_that_fits() -> None:
    scores = scores_by_set(RESULTS)
    assert set(scores) == {"pets", "pets-and-owners", "space", "twins"}
    assert set(scores["pets"]) == {
        "zeroshot-top1",
        "zeroshot-top5",
        "num_samples",
        "num_classes",
        "num_clusters",
    }
    first, last = scores["pets"]["zeroshot-top1"]
    assert first == Point(2, 0.2, pytest.approx(0.16), pytest.approx(0.25))
    assert last.step == 4


def test_bad_samples_are_counted_by_reason(run: Path) -> None:
    page = checked(report(run))
    assert "5 bad samples of 400 seen (1.250%), each replaced by a neighbor." in page.text
    start = page.texts.index("By reason")
    cells = [t for t in page.texts[start : start + 20] if t]
    assert cells[4:10] == ["image", "BadImage", "3", "caption", "Empty", "2"]


def test_skipped_steps_are_listed_with_their_samples(run: Path) -> None:
    text = checked(report(run)).text
    assert "2 steps left out because loss or gradient was not finite" in text
    assert "k<1>, k2" in text


def test_text_of_files_is_escaped(run: Path) -> None:
    html = report(run)
    assert "truncated &lt;b&gt;&amp; small&lt;/b&gt;" in html
    assert "Report on a&lt;b&gt;&amp;c" in html
    assert "no checkpoint &lt;yet&gt;" in html


def test_training_time_follows_from_the_logged_rates(run: Path) -> None:
    assert "8 s (without evaluations and checkpoints" in checked(report(run)).text


def test_values_that_are_not_finite_are_left_out_and_counted(run: Path) -> None:
    lines = [m | ({"train/loss": math.nan} if m["step"] in (2, 3) else {}) for m in METRICS]
    write_lines(run / "metrics.jsonl", lines)
    text = checked(report(run)).text
    assert "2 of 4 values are not finite and left out." in text
    lines = [m | {"train/loss": math.nan} for m in METRICS]
    write_lines(run / "metrics.jsonl", lines)
    assert "No finite value was logged." in checked(report(run)).text


PARTS = {
    "metrics.jsonl": "metrics.jsonl has no line yet.",
    "results.jsonl": "results.jsonl has no evaluation",
    "quarantine.jsonl": "No bad sample of 400 seen",
    "version.json": "version.json is missing",
    "config.yaml": "a model, trained by clipx.",
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_whose_file_is_missing_is_one_line(run: Path, name: str) -> None:
    complete = checked(report(run)).text
    (run / name).unlink()
    assert PARTS[name] in checked(report(run)).text
    assert PARTS[name] not in complete or name == "config.yaml"


def test_a_run_without_a_log_line_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    text = checked(report(tmp_path)).text
    assert text.count("no checkpoint <yet>") == 4  # the lead, classes, retrieval, space


def test_the_report_shows_how_the_run_ended(run: Path) -> None:
    status = {"state": "stopped", "reason": "SIGTERM", "total_steps": 9, "host": "n<1>"}
    (run / "status.json").write_text(json.dumps(status))
    text = checked(report(run)).text
    assert "stopped: SIGTERM" in text
    assert "4 of 9" in text
    assert "host n<1>" in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is not a folder; give the run_dir"),
        (lambda path: path.mkdir(), "neither config.yaml nor metrics.jsonl; give the run_dir"),
    ],
)
def test_a_folder_without_a_run_is_refused_with_the_remedy(
    tmp_path: Path, make: Any, message: str
) -> None:
    make(tmp_path / "x")
    with pytest.raises(UserError, match=message):
        read_record(tmp_path / "x")


def test_an_interval_that_is_not_a_pair_is_left_out(tmp_path: Path) -> None:
    """The score beside it stays."""
    line = {"step": 1, "a-num_samples": 5, "a-zeroshot-top1": 0.5, "a-zeroshot-top1_interval": 1}
    (tmp_path / "config.yaml").write_text("run_dir: x")
    (tmp_path / "results.jsonl").write_text(json.dumps(line))
    scores = scores_by_set(read_record(tmp_path).results)
    assert scores["a"]["zeroshot-top1"] == [Point(1, 0.5)]
