"""`clipx diff` finds the step at which logs part, and the setting behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipx import cli

CONFIG: dict[str, Any] = {
    "run_dir": "a",
    "seed": 0,
    "duration": "6 steps",
    "global_batch_size": 8,
    "data": {"shards": "train", "workers": 1, "crop_scale": [0.9, 1.0]},
    "loss": {"name": "infonce"},
    "micro_batch_size": None,
    "evaluators": {},
}
VERSION = {"clipx": "0.1", "commit": "c0", "torch": "2.14", "cpu": "x x 2", "processes": 1}


def write(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    version: dict[str, Any] | None = None,
    metrics: dict[int, dict[str, Any]] | None = None,
    shards: str = "0.tar\t10\td0\n",
    num_bad: int = 0,
) -> Path:
    """A run of six steps, with some things changed. metrics: step -> entries of its log line"""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | (config or {})))
    (folder / "version.json").write_text(json.dumps(VERSION | (version or {})) + "\n")
    (folder / "corpus.tsv").write_text(shards)
    (folder / "quarantine.jsonl").write_text('{"step": 1}\n' * num_bad)
    lines = []
    for step in range(1, 7):
        line = {
            "step": step,
            "fingerprint": f"{step:016x}",
            "train/lr": 0.001 * step,
            "train/loss": 3.0 - 0.1 * step,
            "train/grad_norm": 2.0,
            "train/samples_per_second": 100.0,
        }
        lines.append(json.dumps(line | (metrics or {}).get(step, {})))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def diff(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    cli.main(["diff", str(a), str(b), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


LOSS_AT_4 = {4: {"train/loss": 2.6000001}, 5: {"train/loss": 2.51}}
ORDER_AT_3 = {3: {"fingerprint": "ff", "train/loss": 2.9}, 4: {"train/loss": 2.8}}


@pytest.mark.parametrize(
    ("changes", "first", "cause"),
    [
        ({}, None, "equal, bit by bit"),
        ({"metrics": {3: {"train/samples_per_second": 7.0}}}, None, "equal, bit by bit"),
        (
            {"metrics": LOSS_AT_4, "config": {"micro_batch_size": 4}},
            ("train/loss", 4, 3),
            "sums are rounded in another order: micro_batch_size unset / 4",
        ),
        (
            {"metrics": LOSS_AT_4, "version": {"cpu": "y x 2", "processes": 2}},
            ("train/loss", 4, 3),
            "rounded in another order: processes 1 / 2; cpu x x 2 / y x 2",
        ),
        (
            {"metrics": {1: {"train/loss": 4.0}}, "version": {"processes": 2}},
            ("train/loss", 1, None),
            "a difference of 0.3 is much for rounding",
        ),
        (
            {"metrics": LOSS_AT_4, "config": {"loss": {"name": "sigmoid"}}},
            ("train/loss", 4, 3),
            "settings of what is computed: loss.name infonce / sigmoid",
        ),
        ({"metrics": LOSS_AT_4}, ("train/loss", 4, 3), "nothing that is recorded differs"),
        (
            {"metrics": LOSS_AT_4, "version": {"commit": "c1"}},
            ("train/loss", 4, 3),
            "the code differs",
        ),
        (
            {"metrics": ORDER_AT_3, "config": {"seed": 1}},
            ("fingerprint", 3, 2),
            "the runs draw other samples: seed 0 / 1",
        ),
        (
            {"metrics": ORDER_AT_3, "shards": "0.tar\t10\td0\n1.tar\t5\td1\n"},
            ("fingerprint", 3, 2),
            "the corpora differ: 0 of 1 / 1 of 2 shards are not in the other, such as 1.tar",
        ),
        (
            {"metrics": ORDER_AT_3, "num_bad": 2},
            ("fingerprint", 3, 2),
            "bad samples were replaced by others: quarantine.jsonl has 0 and 2 lines",
        ),
        ({"metrics": ORDER_AT_3}, ("fingerprint", 3, 2), "a shard was changed"),
        (
            {
                "metrics": {2: {"train/lr": 0.5}, 3: {"train/loss": 9.0}},
                "config": {"duration": "9 steps", "evaluators": {"x": {}}},
            },
            ("train/lr", 2, 1),
            "the schedules differ: duration 6 steps / 9 steps",
        ),
    ],
)
def test_the_first_difference_and_its_cause_are_found(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    first: tuple[str, int, int | None] | None,
    cause: str,
) -> None:
    a = write(tmp_path / "a")
    b = write(tmp_path / "b", **changes)
    for left, right in ((a, b), (b, a)):
        found = diff(left, right, capsys)
        assert found["common_steps"] == 6
        if first is None:
            assert found["partings"] == []
        else:
            parting = min(found["partings"], key=lambda each: each["step"])
            assert (parting["series"], parting["step"], parting["last_equal"]) == first
    assert cause in " ".join(diff(a, b, capsys)["causes"])


def test_settings_that_change_no_number_are_named_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a")
    data = {**CONFIG["data"], "workers": 4, "crop_scale": [0.5, 1.0]}
    b = write(tmp_path / "b", config={"run_dir": "b", "data": data})
    found = diff(a, b, capsys)
    assert found["harmless_settings"] == ["data.workers", "run_dir"]
    assert found["settings"] == {"data.crop_scale": [[0.9, 1.0], [0.5, 1.0]]}


def test_logs_without_a_common_step_are_not_called_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a")
    b = write(tmp_path / "b")
    (b / "metrics.jsonl").write_text('{"step": 7, "train/loss": 1.0}\nnot json\n')
    assert "no step is in both logs (6 and 1 lines)" in diff(a, b, capsys)["causes"][0]


def test_not_finite_losses_are_equal_to_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        write(tmp_path / name, metrics={5: {"train/loss": float("nan")}}) for name in ("a", "b")
    )
    assert diff(a, b, capsys)["partings"] == []


def test_a_person_sees_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a")
    b = write(tmp_path / "b", config={"seed": 1}, metrics=ORDER_AT_3)
    cli.main(["diff", str(a), str(b)])
    out = capsys.readouterr().out
    assert f"A: {a}\nB: {b}\n" in out
    assert "versions: equal" in out
    assert "corpus: equal" in out
    assert "6 steps are in both logs, the last 6" in out
    assert "likely: the runs draw other samples: seed 0 / 1" in out


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "a")
    with pytest.raises(SystemExit) as end:
        cli.main(["diff", str(run), str(tmp_path / "none")])
    assert end.value.code == 2
    assert "none is no run folder" in capsys.readouterr().err
    (run / "config.yaml").write_text("{")
    with pytest.raises(SystemExit):
        cli.main(["diff", str(run), str(run)])
    assert "config.yaml is damaged" in capsys.readouterr().err


def test_torch_is_not_imported() -> None:
    code = "import sys, clipx.training.diff_causes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
