"""`clipx runs`: every run is found, and what it says of a run's life is true."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from clipx import cli
from clipx.training import run_folder as run
from clipx.training import runs

NOW = time.time()


def write_run(folder: Path, *, checkpoints: tuple[int, ...] = (), **changes: Any) -> Path:
    """A run folder as the trainer leaves it: by default of this very process."""
    for step in checkpoints:
        (folder / f"checkpoints/step_{step:08d}").mkdir(parents=True)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    status = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "job": None,
        "attempt": 0,
        "started": NOW,
        "updated": time.time(),  # not NOW: the module may have been imported minutes ago
        "step": 40,
        "total_steps": 100,
        "samples_seen": 20_480,
        "loss": 1.25,
        "samples_per_second": 512.0,
        "checkpoint": 30,
        "state": "running",
        "reason": None,
    }
    (folder / "status.json").write_text(json.dumps(status | changes))
    return folder


def exit_code(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["runs", *map(str, arguments)])
    return int(exit_.value.code or 0)


def ended_process() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "running"),
        ({"state": "finished"}, "finished"),
        ({"state": "stopped", "pid": 1}, "stopped"),
        ({"state": "failed", "pid": 1}, "failed"),
        ({"pid": ended_process()}, "dead"),
        # This process is younger: it has got a dead one's number.
        ({"started": NOW - 10**6}, "dead"),
        ({"host": "elsewhere", "pid": 1}, "running"),
        ({"host": "elsewhere", "pid": 1, "updated": NOW - runs.SILENT_SECONDS - 9}, "silent"),
    ],
)
def test_state_tells_a_living_run_from_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], state: str
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)  # a long session is silent since its import
    assert runs.read(write_run(tmp_path, **changes)).state == state


def test_a_process_that_is_dead_but_not_reaped_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        end = time.monotonic() + 20
        while runs.is_alive(process.pid, time.time()):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.wait()


def test_runs_are_found_at_any_place_below_but_not_inside_one_another(tmp_path: Path) -> None:
    for name in ("a", "deep/er/b", ".hidden/c", "a/copies/d"):
        write_run(tmp_path / name)
    old = tmp_path / "old"  # of a version that wrote no status
    (old / "checkpoints/step_00000012").mkdir(parents=True)
    (old / "config.yaml").touch()
    (tmp_path / "nothing").mkdir()
    assert runs.find([tmp_path]) == [tmp_path / "a", tmp_path / "deep/er/b", old]
    found = runs.read(old)
    assert (found.state, found.step, found.checkpoint) == ("unknown", 12, 12)


@pytest.mark.parametrize("content", ["", '{"step": 4', "[]", "null", "\x00"])
def test_a_status_that_a_full_disk_cut_short_is_no_fault(tmp_path: Path, content: str) -> None:
    run = write_run(tmp_path, checkpoints=(10, 20))
    (run / "checkpoints/.step_00000030.77").mkdir()
    (run / "status.json").write_text(content)
    found = runs.read(run)
    assert (found.state, found.step, found.checkpoint) == ("unknown", 20, 20)


def test_the_table_and_the_json_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", checkpoints=(20, 30), job="81", attempt=2)
    write_run(tmp_path / "b", state="failed", reason="a loss of nan", loss=None)
    cli.main(["runs", str(tmp_path)])
    head, first, second, reason = capsys.readouterr().out.splitlines()
    assert head.split() == [*runs.HEADER]
    host = socket.gethostname()
    assert first.split()[:7] == [
        str(tmp_path / "a"),
        "running",
        "40/100",
        "20,480",
        "1.2500",
        "512",
        "30",
    ]
    assert first.endswith(f"{host}, job 81, start 3")
    assert second.split()[1:7] == ["failed", "40/100", "20,480", "-", "512", "-"]
    assert reason == f"{tmp_path / 'b'}: a loss of nan"
    cli.main(["runs", str(tmp_path), "--json"])
    one, other = json.loads(capsys.readouterr().out)
    assert (one["step"], one["loss"], one["checkpoint"], one["job"]) == (40, 1.25, 30, "81")
    assert (other["state"], other["reason"]) == ("failed", "a loss of nan")


@pytest.mark.parametrize(
    ("state", "code"), [("finished", 0), ("stopped", 75), ("running", 75), ("failed", 75)]
)
def test_check_tells_a_script_whether_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    assert exit_code(write_run(tmp_path, state=state), "--check") == code
    assert capsys.readouterr().out == "40/100\n"


def test_check_takes_what_train_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The YAML file and overrides of a run, so that a script need not know its folder."""
    config = tmp_path / "config.yaml"
    config.write_text(f"run_dir: {write_run(tmp_path / 'a')}")
    write_run(tmp_path / "b", state="finished")
    assert exit_code("--check", config) == 75
    assert exit_code("--check", config, "optim.lr=1e-3", f"run_dir={tmp_path / 'b'}") == 0
    capsys.readouterr()
    for arguments, message in (
        ([tmp_path / "c"], f"{tmp_path / 'c'} is no folder"),
        ([tmp_path / "b/checkpoints"], "holds no run"),
        ([tmp_path / "a", tmp_path / "b"], "--check takes one run, not 2"),
        ([config, "run_dir="], "names no run_dir"),
    ):
        assert exit_code("--check", *arguments) == 2
        assert message in capsys.readouterr().err


def test_runs_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom clipx.cli import main\nmain(sys.argv[1:])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "runs", str(write_run(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_checkout_that_is_not_installed_still_tells_what_computed_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container that has it on PYTHONPATH."""

    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    assert run.code_version()["open_clip"] is not None
    monkeypatch.setattr(run, "version", absent)
    told = run.code_version()
    assert (told["open_clip"], told["torch"]) == (None, torch.__version__)
