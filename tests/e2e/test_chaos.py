"""A run of two processes that is killed again and again ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ranks import Ranks, start
from tiny_runs import metrics, weights_digest, write_config

from clipx.checkpoints import format as checkpoints

LAST = 90
SEED = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    return config_of(tmp_path_factory.mktemp("chaos"), pairs, steps=LAST)


def config_of(folder: Path, pairs: Path, *, steps: int) -> Path:
    return write_config(
        folder,
        pairs,
        duration=f"{steps} steps",
        checkpoint_every="2 steps",
        ema=0.9,
        pool={"queue": 30},
        timeout_minutes=0.5,
    )


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    return undisturbed_run(config)


def undisturbed_run(config: Path) -> Path:
    run = config.parent / "undisturbed"
    ranks = start(["train", config, f"run_dir={run}"], config.parent / "log", world_size=2)
    assert ranks.wait() == [0, 0], ranks.said
    return run


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[bool]:
    """A file system of its own at `folder`, where this user may mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def newest_step(run: Path) -> int:
    found = checkpoints.list_checkpoints(run / "checkpoints")
    return int(found[-1].name.removeprefix("step_")) if found else 0


def wait_until(reached: Callable[[], bool], ranks: Ranks) -> None:
    deadline = time.monotonic() + 60
    while not reached() and ranks.running():
        assert time.monotonic() < deadline, ranks.said
        time.sleep(0.001)


def damage(run: Path, draw: random.Random) -> str:
    """Of the newest checkpoint, a file cut short, changed in one bit, or gone."""
    newest = checkpoints.list_checkpoints(run / "checkpoints")[-1]
    file = draw.choice(sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size))
    how = draw.choice(["cut", "flip", "remove"])
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[: draw.randrange(len(content))])
    elif how == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    else:
        file.unlink()
    return f"{how} {newest.name}/{file.name}"


def kill_at_random(ranks: Ranks, run: Path, draw: random.Random) -> str:
    """While a checkpoint is written, or anywhere; one rank first, or all at once."""
    at = newest_step(run)
    wait_until(lambda: newest_step(run) > at, ranks)  # or 30 kills would need no training
    folder = run / "checkpoints"
    saving = draw.random() < 0.5
    if saving:
        wait_until(lambda: any(folder.glob(".step_*")), ranks)
    time.sleep(draw.uniform(0, 0.01 if saving else 0.2))
    victim = draw.choice([(0,), (1,), (0, 1)])
    half_written = [p.name for p in folder.glob(".step_*")]
    ranks.kill(*victim)
    if len(victim) == 1:  # the other meets the loss, until its launcher ends it
        time.sleep(draw.uniform(0, 0.5))
        ranks.kill(1 - victim[0])
    codes = ranks.wait()
    assert codes[victim[0]] in (-9, 0)
    return f"killed {victim} at step {newest_step(run)}, {half_written or 'between saves'}"


def chaos(config: Path, run: Path, *, kills: int, seed: int) -> list[str]:
    """What was done to the run, which is finished afterwards."""
    draw, done = random.Random(seed), [f"seed {seed}"]
    command = ["train", config, f"run_dir={run}"]
    log = run.parent / "chaos.log"
    damaged = set(draw.sample(range(2, kills), max(1, kills // 5)))
    full = kills // 2
    checkpoint_bytes = 30 << 20
    with small_disk(run / "checkpoints", 6 * checkpoint_bytes) as mounted:
        ballast = run / "checkpoints" / "ballast"
        for number in range(kills):
            if number in damaged:
                done.append(damage(run, draw))
            ranks = start(command, log, world_size=2)
            done.append(kill_at_random(ranks, run, draw))
            if number == full:
                done.append(fill_the_disk(command, run, ballast, mounted=mounted))
        ranks = start(command, log, world_size=2)
        assert ranks.wait() == [0, 0], f"{done}\n{ranks.said[-3000:]}"
        if mounted:  # the file system goes, its content stays
            shutil.copytree(run / "checkpoints", run / "kept")
    if mounted:
        (run / "checkpoints").rmdir()
        (run / "kept").rename(run / "checkpoints")
    return done


def fill_the_disk(command: list[str | Path], run: Path, ballast: Path, *, mounted: bool) -> str:
    """Training goes on over a full disk; what it has trained there is lost with the next kill."""
    limit = None if mounted else 9 << 20
    if mounted:
        free = shutil.disk_usage(ballast.parent).free
        ballast.write_bytes(b"\0" * (free - (9 << 20)))
    at, log = newest_step(run), run.parent / "full.log"
    ranks = start(command, log, world_size=2, file_bytes=limit)
    wait_until(lambda: ranks.said.count("not written") >= 2, ranks)
    assert ranks.running(), ranks.said
    assert newest_step(run) == at
    assert "the last good one stays, training goes on" in ranks.said
    ranks.kill()
    ranks.wait()
    ballast.unlink(missing_ok=True)
    return f"disk full at step {at}"


def check(run: Path, undisturbed: Path, done: list[str], last: int = LAST) -> None:
    told = "\n".join(done)
    assert weights_digest(run, last) == weights_digest(undisturbed, last), told
    assert metrics(run) == metrics(undisturbed), told
    name = f"step_{last:08d}"
    tensors = [f"{file}.safetensors" for file in ("model", "ema", "optimizer/rank_00000")]
    for file in [*tensors, "state.json"]:
        paths = [r / "checkpoints" / name / file for r in (run, undisturbed)]
        assert paths[0].read_bytes() == paths[1].read_bytes(), f"{file}\n{told}"
    kept = [sorted(p.name for p in (r / "checkpoints").iterdir()) for r in (run, undisturbed)]
    assert kept[0] == kept[1], told
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_a_kill_changes_no_bit(pairs: Path, tmp_path: Path) -> None:
    """Of both ranks, somewhere after the checkpoint of step 4."""
    config = config_of(tmp_path, pairs, steps=16)
    undisturbed, run = undisturbed_run(config), tmp_path / "run"
    command = ["train", config, f"run_dir={run}"]
    ranks = start(command, tmp_path / "log1", world_size=2)
    wait_until(lambda: newest_step(run) >= 4, ranks)
    ranks.kill()
    assert ranks.wait() == [-9, -9], ranks.said
    done = f"killed at step {newest_step(run)}"
    ranks = start(command, tmp_path / "log2", world_size=2)
    assert ranks.wait() == [0, 0], ranks.said
    check(run, undisturbed, [done], last=16)


@pytest.mark.slow
def test_three_kills_change_no_bit(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    done = chaos(config, tmp_path / "run", kills=3, seed=SEED)
    check(tmp_path / "run", undisturbed, done)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thirty_kills_change_no_bit(
    config: Path,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = chaos(config, tmp_path / "run", kills=30, seed=SEED)
    with capsys.disabled():
        print("\n" + "\n".join(done))
    check(tmp_path / "run", undisturbed, done)
