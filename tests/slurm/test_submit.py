"""launch/submit.py without SLURM: what it refuses, and the commands it would give."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import ROOT, write_config

CHECKPOINTS = (100, 200, 300, 400, 500)


def load_submit() -> ModuleType:
    """The script as a module: launch/ is no package."""
    spec = importlib.util.spec_from_file_location("submit", ROOT / "launch/submit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


submit = load_submit()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """24 pairs in a batch, 12 streams."""
    return write_config(tmp_path, tmp_path / "corpus")


def dry(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What it would do."""
    submit.main([*map(str, arguments), "--dry-run"])
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        submit.main([*map(str, arguments), "--dry-run"])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_the_command_names_all_that_was_asked_for(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    said = dry(capsys, config, "--nodes=3", "--gpus-per-node=4", "--account=lab", "optim.lr=1e-2")
    command, _, script = said.partition("\n\n")
    run = config.parent / "run"
    assert f"LAUNCH=torchrun PER_NODE=4 LOG_DIR={run}/logs sbatch --parsable" in command
    for word in (
        *("--nodes=3", "--gpus-per-node=4", "--ntasks-per-node=1", "--time=24:00:00"),
        *("--job-name=run", "--account=lab", f"--output={run}/logs/%j.out"),
    ):
        assert word in command.split()
    assert command.endswith(f"launch/slurm.sbatch {config} optim.lr=1e-2")
    assert script.startswith("#!/bin/bash\n")
    assert not run.exists(), "a dry run leaves nothing"


def test_srun_needs_a_task_for_each_process(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    said = dry(capsys, config, "--per-node=2", "--launch=srun", "--nodes", 2)
    assert "--ntasks-per-node=2" in said.split("\n\n")[0]
    assert "--gpus-per-node" not in said.split("\n\n")[0]


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    said = refusal(capsys, config, "--nodes=5", "--gpus-per-node=1", "micro_batch_size=3")
    assert "does not fit 5 nodes x 1 processes = 5 ranks" in said
    assert "global_batch_size 24 is not a multiple of 5 ranks; the nearest that fits is 25" in said
    assert "data.streams 12 and 5 ranks: each rank would read 12 streams" in said
    assert "the nearest that fits is 10" in said
    said = refusal(capsys, config, "--nodes=2", "micro_batch_size=5")
    assert (
        "24 is not a multiple of 2 ranks x micro_batch_size 5; the nearest that fits is 20" in said
    )
    assert "unknown key" in refusal(capsys, config, "optim.rate=1")
    (config.parent / "run/checkpoints").mkdir(parents=True)  # a run keeps its order
    assert "streams" not in refusal(capsys, config, "--nodes=5")


@given(st.integers(1, 4096), st.integers(1, 512), st.integers(1, 64) | st.none())
def test_the_nearest_that_is_named_fits(size: int, ranks: int, micro: int | None) -> None:
    settings = {"micro_batch_size": micro, "streams": None}
    for complaint in submit.misfits(ranks, global_batch_size=size, **settings):
        named = int(complaint.rsplit(" ", 1)[1])
        assert named % ranks == 0
        if named == size:
            raise AssertionError(complaint)
        if "micro_batch_size" in complaint:
            assert not list(submit.misfits(ranks, global_batch_size=named, **settings))
    units = [n * ranks for n in range(1, 4096 // ranks + 3)]
    assert abs(submit.nearest(size, ranks) - size) == min(abs(unit - size) for unit in units)


def test_evaluations_are_an_array_over_what_has_no_result(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for step in CHECKPOINTS:
        (run / f"checkpoints/step_{step:08d}").mkdir(parents=True)
    (run / "checkpoints/step_best").mkdir()
    (run / "evals").mkdir()
    (run / "evals/step_00000300.jsonl").touch()
    said = dry(capsys, "--eval", run, "--every=2", "--at-once=4", "--gpus-per-node=1", "--qos=low")
    command, _, script = said.partition("\n\n")
    assert {"--array=0-1%4", "--gpus-per-node=1", "--qos=low"} <= set(command.split())
    paths = [run / "checkpoints/step_00000100", run / "checkpoints/step_00000500"]
    assert f"checkpoints=({paths[0]} {paths[1]})" in script
    assert (
        refusal(capsys, "--eval", tmp_path)
        == f"submit: {tmp_path} has no checkpoint to evaluate: there are none\n"
    )


NAMES = ["a run", "$(touch pwned)", "`touch pwned`", '"; touch pwned; "', "'; touch pwned; '"]


@pytest.mark.parametrize("name", [*NAMES, "a\n#SBATCH --wrap=x\ntouch pwned", "{folder}%j\\"])
def test_the_script_of_an_array_job_evaluates_its_own_checkpoint(tmp_path: Path, name: str) -> None:
    """With an `srun` and a `python` that only say what they are told. A failed evaluation leaves
    no result."""
    run = tmp_path / name
    for step in CHECKPOINTS:
        (run / f"checkpoints/step_{step:08d}").mkdir(parents=True)
    (run / "evals").mkdir()
    options, more = submit.parse(["--eval", str(run), "--dry-run"])
    command, script, _ = submit.eval_job(options, more)
    (output,) = [word for word in command if word.startswith("--output=")]
    assert output == f"--output={run}/evals".replace("%", "%%") + "/logs/%A-%a.out"
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    for task, code in ((2, 0), (3, 1)):
        srun.write_text(f'#!/bin/bash\necho "$*"\nexit {code}\n')
        srun.chmod(0o755)
        env = {"PATH": f"{srun.parent}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": str(task)}
        done = subprocess.run(["bash"], input=script, env=env, text=True, cwd=tmp_path, check=False)
        assert done.returncode == code
    said = (run / "evals/step_00000300.jsonl").read_text()
    assert said == f"python -m clipx eval {run}/checkpoints/step_00000300 --json\n"
    assert not (run / "evals/step_00000400.jsonl").exists()
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the YAML file of a run, or --eval RUN"),
        (["x.yaml", "--partition", "gpu"], "gpu: neither key=value nor an option"),
        (["x.yaml", ""], "neither key=value nor an option"),
        (["x.yaml", "--nodes=0"], "--nodes: invalid count value: '0'"),
        (["x.yaml", "--per-node=-1"], "--per-node: invalid count value: '-1'"),
        (["x.yaml", "--gpus-per-node=-1"], "--gpus-per-node: invalid gpus value: '-1'"),
        (["--eval=run", "--every=0"], "--every: invalid count value: '0'"),
        (["--eval=run", "--at-once=x"], "--at-once: invalid count value: 'x'"),
    ],
)
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        submit.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_refusal_of_sbatch_is_passed_on(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    sbatch.write_text("#!/bin/bash\necho 'invalid partition specified' >&2; exit 1\n")
    sbatch.chmod(0o755)
    # The interpreter prints such a text and exits with 1.
    with pytest.raises(SystemExit, match="sbatch refused: invalid partition"):
        submit.main([str(config)])
    sbatch.write_text("#!/bin/bash\necho '77;cluster'\n")
    submit.main([str(config)])
    assert capsys.readouterr().out.endswith("job 77\n")
    assert (config.parent / "run/logs").is_dir(), "SLURM makes no folder for its output"
