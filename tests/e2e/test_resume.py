"""After a kill, a full disk or a broken checkpoint a run is the one that nothing disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ranks import start
from tiny_runs import (
    kill_when,
    metrics,
    steps_logged,
    train,
    weights_digest,
    write_config,
    write_corpus,
    write_test_set,
)

from clipx import cli
from clipx.checkpoints import format as checkpoints
from clipx.checkpoints import manifest

LAST = 40


def assert_same_run(run: Path, undisturbed: Path) -> None:
    assert weights_digest(run, LAST) == weights_digest(undisturbed, LAST)
    assert metrics(run) == metrics(undisturbed)
    states = [
        json.loads((r / "checkpoints" / f"step_{LAST:08d}" / "state.json").read_text())
        for r in (run, undisturbed)
    ]
    assert states[0] == states[1]
    names = [sorted(p.name for p in (r / "checkpoints").iterdir()) for r in (run, undisturbed)]
    assert names[0] == names[1], "nothing half-written is left"
    assert checkpoints.verify(run / "checkpoints" / f"step_{LAST:08d}") is None


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def main_fails(*arguments: str | Path) -> None:
    """`clipx ...` in this process exits with 2: the user's mistake."""
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    assert exit.value.code == 2


@pytest.mark.parametrize(
    ("steps", "workers"),
    [
        ((17,), ("1", "2")),
        *(
            pytest.param(steps, workers, marks=pytest.mark.slow)
            for steps, workers in [
                ((1,), ("0", "0")),
                ((9, 11), ("1", "0", "1")),
                ((10,), ("2", "2")),
                ((20, 21, 33), ("0", "3", "1", "0")),
            ]
        ),
    ],
)
def test_a_run_killed_at_a_step_and_started_again_is_bit_identical(
    steps: tuple[int, ...],
    workers: tuple[str, ...],
    config: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    """With another number of workers at each start, and evaluations where there were none: neither
    may change what is trained."""
    run = tmp_path / "run"
    shapes = write_test_set(tmp_path / "set")
    tests = f"{{tiny: {{name: zero_shot, path: {shapes}, every: 10 steps}}}}"
    for step, count in zip(steps, workers, strict=False):
        kill_when(
            lambda step=step: steps_logged(run) >= step,
            tmp_path / "log",
            config,
            f"run_dir={run}",
            f"data.workers={count}",
        )
        assert steps_logged(run) < LAST
    newest, _ = checkpoints.newest_valid(run / "checkpoints")
    resumed_at = 0 if newest is None else int(newest.name.removeprefix("step_"))
    done = train(config, f"run_dir={run}", f"data.workers={workers[-1]}", f"evaluators={tests}")
    assert (f"at step {resumed_at}\n" in done.stderr) == (resumed_at > 0)
    assert_same_run(run, undisturbed)
    evaluated = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [r["step"] for r in evaluated] == [s for s in (10, 20, 30, 40) if s >= resumed_at]
    assert all(0 <= r["tiny-zeroshot-top1"] <= 1 for r in evaluated)


def die_at(moment: str, folder: Path) -> None:
    """Make this process kill itself where it comes to `moment` in the checkpoint of step 20."""
    module = manifest if moment == "prune" else checkpoints
    original = vars(module)[moment]

    def dying(*values: Any, **settings: Any) -> Any:
        if any(folder.glob("*step_00000020*")):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*values, **settings)

    vars(module)[moment] = dying


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        pytest.param("seal", 10, id="all written, not the manifest"),
        pytest.param("_write_texts", 10, id="tensors written", marks=pytest.mark.slow),
        pytest.param("sync", 20, id="renamed, perhaps not on the disk", marks=pytest.mark.slow),
        pytest.param("prune", 20, id="renamed", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_while_it_writes_a_checkpoint_is_bit_identical(
    moment: str, step: int, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = start(
        ["train", config, f"run_dir={run}"],
        tmp_path / "log",
        prepare=partial(die_at, moment, run / "checkpoints"),
    )
    assert ranks.wait() == [-signal.SIGKILL], ranks.said
    half_written = list((run / "checkpoints").glob(".step_00000020.*"))
    assert len(half_written) == (step == 10)
    again = train(config, f"run_dir={run}")
    assert f"at step {step}\n" in again.stderr
    assert_same_run(run, undisturbed)


def test_a_second_start_of_a_finished_run_changes_nothing(
    config: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(undisturbed, tmp_path)

    def content() -> dict[str, tuple[int, bytes]]:
        files = [p for p in (run / "checkpoints").rglob("*") if p.is_file()]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before, lines = content(), (run / "metrics.jsonl").read_text()
    began = time.monotonic()
    cli.main(["train", str(config), f"run_dir={run}"])
    assert time.monotonic() - began < 20, "it does not train again; on its own it takes a second"
    assert content() == before
    assert (run / "metrics.jsonl").read_text() == lines
    said = capsys.readouterr().err
    assert "at step 40" in said
    assert "already finished with 40 of 40 steps" in said
    assert "samples/s" not in said


def truncate(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_passed_over_for_an_earlier_one(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Both damages at once: a bit of the newest, half of a file of the one before."""
    run = copy_of(undisturbed, tmp_path)
    flip_a_bit(run / "checkpoints" / "step_00000040" / "model.safetensors")
    truncate(run / "checkpoints" / "step_00000030" / "training.pt")
    done = train(config, f"run_dir={run}")
    assert "step_00000040 is skipped: model.safetensors has another SHA-256" in done.stderr
    assert "step_00000030 is skipped: training.pt has" in done.stderr
    assert "at step 20" in done.stderr
    assert_same_run(run, undisturbed)


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "optimizer/rank_00000.safetensors", "training.pt"),
        *("state.json", "open_clip_config.json", "config.yaml"),
    ],
)
def test_every_damage_to_every_file_of_a_checkpoint_is_noticed(
    name: str, damage: Callable[[Path], Any], undisturbed: Path, tmp_path: Path
) -> None:
    checkpoint = Path(
        shutil.copytree(undisturbed / "checkpoints" / "step_00000040", tmp_path / "step_00000040")
    )
    assert checkpoints.verify(checkpoint) is None
    damage(checkpoint / name)
    assert name in (checkpoints.verify(checkpoint) or "")


def test_a_folder_of_another_config_is_refused_by_the_key_that_differs(
    config: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(undisturbed, tmp_path)
    stored = (run / "config.yaml").read_text()
    main_fails("train", config, f"run_dir={run}", "optim.lr=2e-3", "data.workers=1")
    said = capsys.readouterr().err
    assert "belongs to another config: optim.lr differ" in said
    assert "data.workers" not in said, "which may change"
    assert (run / "config.yaml").read_text() == stored


def test_a_changed_corpus_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, write_corpus(tmp_path / "corpus"), duration="2 steps")
    cli.main(["train", str(config)])
    write_corpus(tmp_path / "corpus", samples=97)
    main_fails("train", config)
    told = capsys.readouterr().err
    assert "is not the one that" in told
    assert "shards changed: shards/00.tar (24 to 25 samples), shards/01.tar (24 to" in told
    cli.main(["train", str(config), "duration=3 steps", "data.accept_changed_corpus=true"])
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3]
    cli.main(["train", str(config), "duration=4 steps"])  # from now on this is the corpus


def test_a_longer_duration_goes_on_where_the_run_ended(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, pairs, duration="2 steps")
    cli.main(["train", str(config)])
    cli.main(["train", str(config), "duration=5 steps"])
    assert "at step 2" in capsys.readouterr().err
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_full_disk_leaves_no_half_checkpoint_and_is_an_error_only_at_the_end(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the disk: the weights (6 MiB) fit, the optimizer's
    state (13 MiB) does not."""
    run, limit = tmp_path / "run", 9 << 20
    ranks = start(["train", config, f"run_dir={run}"], tmp_path / "log", file_bytes=limit)
    assert ranks.wait() == [2], ranks.said
    assert "Traceback" not in ranks.said
    for step in (10, 20, 30):
        assert f"checkpoint of step {step} not written" in ranks.said
    assert ranks.said.splitlines()[-1].startswith("clipx: checkpoint of step 40 not written")
    assert metrics(run) == metrics(undisturbed), "training itself was not disturbed"
    assert list((run / "checkpoints").iterdir()) == [], "no part of a checkpoint is left"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")]
)
def test_training_goes_on_past_a_checkpoint_that_cannot_be_written(
    error: Exception,
    tmp_path: Path,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, pairs, duration="3 steps", checkpoint_every="1 steps")
    write, calls = checkpoints.torch.save, []

    def full_at_the_second(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        write(*arguments)

    monkeypatch.setattr(checkpoints.torch, "save", full_at_the_second)
    cli.main(["train", str(config)])
    assert "checkpoint of step 2 not written" in capsys.readouterr().err
    names = [p.name for p in checkpoints.list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == ["step_00000001", "step_00000003"]


def test_a_run_folder_that_cannot_be_written_is_refused_before_the_first_step(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file where a folder must be")
    main_fails("train", config, f"run_dir={tmp_path / 'run'}")
    assert "cannot be written" in capsys.readouterr().err
