"""The command line: exit codes, and for the user's mistakes a message without a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_checkpoints
import torch
import yaml
from samples import png, write_test_set

from clipx import cli
from clipx.eval_verb import chosen_evaluators
from clipx.models.dual_encoder import DualEncoder

MODEL = small_checkpoints.MODEL | {  # with the words of the tokenizer
    "text_cfg": small_checkpoints.MODEL["text_cfg"] | {"vocab_size": 49408}
}


def clipx(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """(exit code, what it said on stderr)"""
    capsys.readouterr()
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def config(tmp_path: Path, corpus: Path) -> Path:
    """A run that would train."""
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    settings: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "data": {"shards": str(corpus), "workers": 0},
        "model": {"name": str(tmp_path / "model.json")},
        "duration": "2 steps",
        "optim": {"warmup": "1 step"},
        "global_batch_size": 4,
        "device": "cpu",
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "the following arguments are required: config"),
        (["eval"], "the following arguments are required: MODEL"),
        (["data"], "the following arguments are required: WHAT"),
        (["data", "demo", "--preset", "huge"], "invalid choice: 'huge'"),
        (["config", "show", "nowhere.yaml"], "clipx: config nowhere.yaml does not exist"),
        (["train", "nowhere.yaml"], "clipx: config nowhere.yaml does not exist"),
        (["eval", "nowhere"], "clipx: model nowhere does not exist; give a run folder"),
    ],
)
def test_a_wrong_command_exits_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, output = clipx(capsys, *arguments)
    assert code == 2
    assert message in output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=3", "optim.lrr: unknown key; did you mean 'lr'?"),
        ("lr", "override 'lr' is not of the form key=value"),
        ("seed=[", "the value is not YAML"),
        ("duration=soon", "duration: 'soon' is not a duration; write for example '2000 steps'"),
        ("data.shards=nowhere/*.tar", "no shard matches 'nowhere/*.tar'"),
        ("data.shards=nowhere.tar", "shard nowhere.tar does not exist"),
        ("model.name=nowhere.json", "model file nowhere.json does not exist"),
        ("model.name=ViT-B-33", "did you mean ViT-B-32"),
        ("loss=infonc", "did you mean 'infonce'?"),
        ("run_dir={file}/run", "cannot be written: "),
        ("model.name={file}", "neither a path to a .json nor a model of open_clip"),
        ("data.shards={file}", "is not a tar file or is cut inside its first member"),
    ],
)
def test_a_mistake_in_training_is_reported_before_the_first_step(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path, override: str, message: str
) -> None:
    file = tmp_path / "file"
    file.write_text("some text")
    code, output = clipx(capsys, "train", config, override.format(file=file))
    assert code == 2
    assert message in output
    assert "Traceback" not in output
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the mistake needs a machine without CUDA")
def test_a_missing_gpu_is_named(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    code, output = clipx(capsys, "train", config, "device=cuda")
    assert code == 2
    assert "device cuda: no CUDA device is visible" in output


def test_a_run_folder_belongs_to_its_config(
    capsys: pytest.CaptureFixture[str], config: Path, corpus: Path
) -> None:
    assert clipx(capsys, "train", config)[0] == 0
    code, output = clipx(capsys, "train", config, "seed=1", "optim.lr=1", "log_every=1 step")
    assert code == 2
    assert "belongs to another config: optim.lr, seed differ" in output
    (corpus / "00002.tar").unlink()
    code, output = clipx(capsys, "train", config, "duration=3 steps")
    assert code == 2
    assert "is not the one that" in output.replace("\n", " ")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "run/checkpoints"
    return small_checkpoints.save(folder, 1, model=DualEncoder(MODEL), model_json=MODEL)


def test_mistakes_of_eval_are_named(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    run = checkpoint.parents[1]
    captions = write_test_set(tmp_path / "set", {"0": {"png": png(0), "txt": "x"}})
    broken = write_test_set(
        tmp_path / "broken",
        {"0": {"png": png(0), "cls": "7"}},
        classnames=["cat"],
        zeroshot_classification_templates=["{c}"],
    )
    for arguments, message in (
        ([run], "has no config.yaml with evaluators; name a test set with --set"),
        ([run, "--set", tmp_path / "nowhere"], "nowhere does not exist"),
        ([run, "--set", broken], "has the label '7' at sample 0.tar/0, but classnames.txt"),
        ([run, "--set", captions, "--picture", tmp_path / "a.gif"], "must end with one of .png"),
        ([tmp_path, "--set", captions], "holds no usable checkpoint"),
    ):
        code, output = clipx(capsys, "eval", *arguments)
        assert code == 2
        assert message in output
    os.truncate(checkpoint / "model.safetensors", 100)
    for path, message in ((checkpoint, "is damaged: model.safetensors has 100"), (run, "skipped")):
        code, output = clipx(capsys, "eval", path, "--set", captions)
        assert code == 2
        assert message in output


def test_an_interrupt_exits_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_config_show", interrupted)
    assert clipx(capsys, "config", "show", "x.yaml") == (130, "clipx: interrupted\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_config_show", faulty)
    with pytest.raises(ZeroDivisionError):
        cli.main(["config", "show", "x.yaml"])


def test_config_show_prints_what_reads_back_the_same(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path
) -> None:
    cli.main(["config", "show", str(config), "optim.lr=1e-3"])
    first = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(first)
    cli.main(["config", "show", str(tmp_path / "again.yaml")])
    assert capsys.readouterr().out == first
    assert yaml.safe_load(first)["optim"]["lr"] == 1e-3


def test_python_m_clipx_exits_with_2_and_one_line(tmp_path: Path) -> None:
    done = python("-m", "clipx", "config", "show", str(tmp_path / "nowhere.yaml"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("clipx: config ")
    assert len(done.stderr.splitlines()) == 1


def test_the_versions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert re.fullmatch(
        r"clipx \S.* \(Python 3\.\d+\.\d+, torch \d+\.\d+\S*\)\n", capsys.readouterr().out
    )


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom clipx.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "slow = {'torch', 'numpy', 'pydantic', 'open_clip', 'PIL'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    for arguments in (["--help"], ["train", "--help"], ["eval", "--help"]):
        done = python("-c", code, *arguments)
        assert done.returncode == 0, done.stderr
        assert "usage: clipx" in done.stdout


@pytest.fixture
def class_folders(tmp_path: Path) -> list[Path]:
    """Two sets in class folders of one name, without templates."""
    folders = [tmp_path / first / "pets" for first in ("a", "b")]
    for folder in folders:
        for number, name in enumerate(("cat", "dog")):
            (folder / name).mkdir(parents=True)
            (folder / name / "0.png").write_bytes(png(number))
    return folders


def test_settings_of_eval_reach_the_sets_or_are_an_error(
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    class_folders: list[Path],
    tmp_path: Path,
) -> None:
    run = checkpoint.parents[1]
    first = class_folders[0]
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        yaml.safe_dump({"evaluators": {"x": {"name": "zero_shot", "path": str(first)}}})
    )
    for arguments, message in (
        ([run, "templates=simple"], "templates= is a setting of test sets that are named by --set"),
        ([run, "word"], "override 'word' is not of the form key=value"),
        ([run, "--set", first, "word"], "unrecognized arguments: word"),
        ([run, "--suite", suite, "templates=simple"], "templates= is a setting of test sets"),
        (
            [run, "--set", first, "evaluators.x.split=val"],
            "changes an evaluator of a suite or a run",
        ),
        ([run, "--set", first, "template=simple"], "unknown key; did you mean 'templates'?"),
        ([run, "--set", first, "--set", first], "is given twice"),
        ([run, "--set", first], "set templates=openai or simple"),
        ([run, "--set", first, "templates=simple", "--precision", "tf32"], "has no TF32"),
    ):
        assert clipx(capsys, "eval", *arguments)[0] == 2, arguments
        assert message in clipx(capsys, "eval", *arguments)[1]


def test_two_sets_of_one_name_both_have_results(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, class_folders: list[Path]
) -> None:
    """The templates that class folders do not have are given as a setting."""
    run = checkpoint.parents[1]
    sets = [word for folder in class_folders for word in ("--set", str(folder))]
    torch.set_float32_matmul_precision("high")
    cli.main(["eval", str(run), *sets, "templates=simple", "--precision", "fp32", "--json"])
    assert torch.get_float32_matmul_precision() == "highest", "no TF32 was asked for"
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["set"] for line in lines} == {"a-pets", "b-pets"}
    assert {line["num_samples"] for line in lines} == {2}


def test_settings_change_the_evaluators_of_a_run(
    checkpoint: Path, class_folders: list[Path]
) -> None:
    run = checkpoint.parents[1]
    data = {
        "run_dir": str(run),
        "data": {"shards": "x"},
        "model": {"name": "ViT-B-32"},
        "duration": "1 step",
        "global_batch_size": 1,
        "evaluators": {"pets": {"name": "zero_shot", "path": str(class_folders[0])}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(data))
    chosen = chosen_evaluators(str(run), [], None, ["evaluators.pets.templates=simple"])
    assert chosen["pets"].templates == "simple"
