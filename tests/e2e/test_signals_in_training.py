"""Runs that are asked to stop, refused, left alone by a peer: what they say, how they end, and that
they go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1

import pytest
from ranks import Ranks, start
from test_chaos import wait_until
from test_elastic import has_logged
from tiny_runs import (
    ROOT,
    clipx_command,
    environment,
    metrics,
    weights_digest,
    write_config,
    write_test_set,
)

from clipx.checkpoints import format as checkpoints

LAST = 40


def begun(config: Path, run: Path, *more: str, processes: int = 1, **variables: str) -> Ranks:
    """A run that has logged two lines."""
    command = ["train", config, f"run_dir={run}", *more]
    ranks = start(command, run.parent / "log", world_size=processes, **variables)
    wait_until(partial(has_logged, run / "metrics.jsonl", 2), ranks)
    return ranks


def status(run: Path) -> dict[str, object]:
    return json.loads((run / "status.json").read_text())


@pytest.mark.parametrize(
    ("processes", "number"),
    [(1, SIGTERM), pytest.param(2, SIGINT, marks=pytest.mark.slow), (2, SIGUSR1)],
)
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_of_that_step(
    processes: int,
    number: signal.Signals,
    config: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    ranks = begun(config, run, "checkpoint_every=1000 steps", processes=processes)
    ranks.kill(processes - 1, by=number)
    assert ranks.wait() == [75] * processes, ranks.said
    step = metrics(run)[-1]["step"]
    assert step < LAST
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step_{step:08d}"]
    said = f"stopped at step {step} of {LAST} by {number.name}, with a checkpoint"
    assert ranks.said.count(f"clipx: {said}; the same command resumes it") == 1, ranks.said
    told = status(run)
    assert (told["state"], told["step"], told["checkpoint"]) == ("stopped", step, step)
    assert said in str(told["reason"])
    assert not (run / "lock").exists()
    again = start(["train", config, f"run_dir={run}"], tmp_path / "log2", world_size=processes)
    assert again.wait() == [0] * processes, again.said
    assert status(run)["state"] == "finished"
    if processes == 1:
        assert weights_digest(run, LAST) == weights_digest(undisturbed, LAST)
        assert metrics(run) == metrics(undisturbed)


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"])
def test_agents_that_restart_failures_get_0(variable: str, config: Path, tmp_path: Path) -> None:
    ranks = begun(config, tmp_path / "run", **{variable: "no"})
    ranks.kill(by=SIGTERM)
    assert ranks.wait() == [0], ranks.said
    assert status(tmp_path / "run")["state"] == "stopped"


def test_a_second_signal_ends_at_once_and_what_was_saved_is_kept(
    pairs: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, pairs, checkpoint_every="1 steps")
    ranks = start(["train", config, "duration=2000 steps"], tmp_path / "log")
    wait_until(partial(has_logged, tmp_path / "run/metrics.jsonl", 3), ranks)
    os.kill(ranks.pids[0], SIGSTOP)  # or the first would be done before the second is sent
    os.kill(ranks.pids[0], SIGTERM)
    os.kill(ranks.pids[0], SIGINT)
    os.kill(ranks.pids[0], signal.SIGCONT)
    assert ranks.wait() == [130], ranks.said
    assert "again: ended at once" in ranks.said
    newest, complaints = checkpoints.newest_valid(tmp_path / "run/checkpoints")
    assert newest is not None
    assert not complaints


@pytest.mark.parametrize(
    "signaled",
    [
        pytest.param((0,), marks=pytest.mark.slow, id="first"),
        pytest.param((1,), id="last"),
        pytest.param((0, 1), marks=pytest.mark.slow, id="both"),
    ],
)
def test_a_signal_in_an_evaluation_leaves_it_and_it_is_done_again(
    signaled: tuple[int, ...], pairs: Path, tmp_path: Path
) -> None:
    """It takes seconds: the signal comes long before it would be done. Many more times of a signal
    are in tests/distributed/test_distributed_evaluation.py."""
    shapes = write_test_set(tmp_path / "set")
    config = write_config(tmp_path, pairs, duration="12 steps", checkpoint_every="100 steps")

    def command(corruptions: int) -> list[str | Path]:
        noises = ", ".join(corruptions * ["gaussian_noise"])
        tiny = f"tiny: {{name: zero_shot, path: {shapes}, every: 6 steps}}"
        slow = (
            f"slow: {{name: robustness, path: {shapes}, every: 6 steps, corruptions: [{noises}]}}"
        )
        return ["train", config, f"evaluators={{{tiny}, {slow}}}"]

    run = tmp_path / "run"
    ranks = start(command(20), tmp_path / "log", world_size=2)
    wait_until(lambda: (run / "checkpoints/step_00000006").exists(), ranks)
    ranks.kill(*signaled, by=SIGUSR1)
    assert ranks.wait() == [75, 75], ranks.said
    assert "stopped at step 6 of 12 by SIGUSR1, with a checkpoint" in ranks.said
    assert "failed, training goes on" not in ranks.said
    assert (run / "checkpoints/step_00000006").exists(), "an evaluation has a checkpoint before it"
    assert not results(run)
    again = start(command(1), tmp_path / "log2", world_size=2)
    assert again.wait() == [0, 0], again.said
    assert [record["step"] for record in results(run)] == [6, 12]


def results(run: Path) -> list[dict[str, object]]:
    file = run / "results.jsonl"
    return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []


def test_a_run_stops_by_itself_before_its_time_is_over(config: Path, tmp_path: Path) -> None:
    run, end = tmp_path / "run", time.time() + 60
    ranks = start(
        ["train", config, f"run_dir={run}", "stop_margin=59.9s", "duration=4000 steps"],
        tmp_path / "log",
        SLURM_JOB_END_TIME=str(int(end)),
        SLURM_JOB_ID="17",
        SLURM_RESTART_COUNT="2",
    )
    assert ranks.wait() == [75], ranks.said
    assert "by the time limit, with a checkpoint" in ranks.said
    told = status(run)
    assert (told["job"], told["attempt"], told["checkpoint"]) == ("17", 2, told["step"])
    again = start(
        ["train", config, f"run_dir={run}", "stop_after=1 s", "duration=4000 steps"],
        tmp_path / "log2",
    )
    assert again.wait() == [75], again.said


def test_checkpoints_by_the_clock(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["checkpoint_every=0.2 s", "keep_checkpoints=1", "keep_every=1 steps"]
    ranks = start(["train", config, f"run_dir={run}", *more], tmp_path / "log", world_size=2)
    assert ranks.wait() == [0, 0], ranks.said
    found = checkpoints.list_checkpoints(run / "checkpoints")
    assert len(found) > 1
    assert found[-1].name == f"step_{LAST:08d}"


def test_a_second_run_in_a_folder_is_refused_on_all_ranks(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = begun(config, run, "duration=4000 steps")
    second = start(["train", config, f"run_dir={run}"], tmp_path / "log2", world_size=2)
    assert second.wait() == [2, 2], second.said
    assert second.said.count(f"run_dir {run} is in use by process {first.pids[0]} on") == 1
    assert first.running()
    first.kill()
    first.wait()
    third = start(["train", config, f"run_dir={run}", "duration=4000 steps"], tmp_path / "log3")
    wait_until(lambda: f"taken over from process {first.pids[0]} on" in third.said, third)
    assert third.running(), third.said
    third.kill(by=SIGTERM)
    assert third.wait() == [75], third.said


@pytest.mark.slow
def test_torchrun_starts_the_ranks_again_after_one_was_killed(config: Path, tmp_path: Path) -> None:
    """The bits are those of two processes that nothing disturbed."""
    run, other = tmp_path / "run", tmp_path / "undisturbed"
    command = clipx_command("train", config, f"run_dir={run}", processes=2)
    command.insert(command.index("--standalone"), "--max-restarts=2")
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment() | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as torchrun:
        deadline = time.monotonic() + 90
        while not (run / "checkpoints/step_00000010").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(int(str(status(run)["pid"])), SIGKILL)
        said = torchrun.communicate(timeout=120)[1]
    assert torchrun.returncode == 0, said
    assert re.search(r"resumed from .*step_000000[123]0 at step", said), said
    assert "Traceback" not in said
    ranks = start(["train", config, f"run_dir={other}"], tmp_path / "log", world_size=2)
    assert ranks.wait() == [0, 0]
    assert weights_digest(run, LAST) == weights_digest(other, LAST)
    assert metrics(run) == metrics(other)


@pytest.mark.parametrize(
    "end",
    [pytest.param(SIGKILL, marks=pytest.mark.slow, id="dies"), pytest.param(SIGSTOP, id="hangs")],
)
def test_a_rank_that_is_gone_is_named_within_the_timeout(
    end: signal.Signals, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ["timeout_minutes=0.1", "duration=4000 steps"]
    ranks = begun(config, run, *more, processes=3)
    began = time.monotonic()
    ranks.kill(1, by=end)
    wait_until(lambda: False, Ranks([ranks.processes[0], ranks.processes[2]], tmp_path / "log"))
    assert time.monotonic() - began < 30
    ranks.kill(1)
    codes = ranks.wait()
    assert (codes[0], codes[1], codes[2]) == (1, -9, 1), ranks.said
    assert "rank 1 on " in ranks.said
    assert "has gone silent" in ranks.said
    assert "Traceback" not in ranks.said
    assert status(run)["state"] == "failed"
