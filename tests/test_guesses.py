"""Mistakes in configs and commands get an error that guesses what was meant, before torch is
imported."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter
from ranks import ROOT, environment
from test_architecture import MODULES

from clipx.config import config, load, read
from clipx.config_outline import Outline, check_outline
from clipx.open_clip_flags import (
    REASONS,
    SETTINGS,
    SHORT_NAMES,
    explain_flags,
    setting_for,
)
from clipx.training.config import TrainConfig
from clipx.training.run_config import load_config
from clipx.types import UserError

BASE = {
    "run_dir": "runs/a",
    "data": {"shards": "data"},
    "model": {"name": "ViT-B-32"},
    "duration": "2 epochs",
    "global_batch_size": 8,
}
GUESSES = {
    "batch_size=64": "batch_size: unknown key; in clipx: global_batch_size=64",
    "batch-size=64": "batch-size: unknown key; in clipx: global_batch_size=64",
    "optim.batch_size=64": "optim.batch_size: unknown key; in clipx: global_batch_size=64",
    "lr=1e-3": "lr: unknown key; in clipx: optim.lr=1e-3",
    "learning_rate=1e-3": "learning_rate: unknown key; in clipx: optim.lr=1e-3",
    "epochs=3": "epochs: unknown key; in clipx: duration='3 epochs'",
    "warmup=100": "warmup: unknown key; in clipx: optim.warmup='100 steps'",
    "weight_decay=0.1": "weight_decay: unknown key; in clipx: optim.weight_decay=0.1",
    "workers=4": "workers: unknown key; in clipx: data.workers=4",
    "resume=latest": "resume: unknown key; in clipx: the same command resumes from the newest ",
    "shards=x": "shards: unknown key; did you mean data.shards?",
    "queue=5": "queue: unknown key; did you mean pool.queue?",
    "optim.lrr=1": "optim.lrr: unknown key; did you mean 'lr'?",
    "global_batch_sizes=1": "global_batch_sizes: unknown key; did you mean 'global_batch_size'?",
    "precision=amp_bf16": "precision: .* (given: 'amp_bf16'); write precision=bf16",
    "precision=amp": "precision: .* (given: 'amp'); write precision=fp16",
    "model=ViT-B-32": "model: it is a group of settings (given: 'ViT-B-32'); "
    "write model.name=ViT-B-32",
    "data=/x": "data: it is a group of settings (given: '/x'); write data.shards=/x",
    "optim=adamw": "optim: it is a group of settings (given: 'adamw'); write optim.kind=adamw",
    "model.initial=file.pt": "model.initial: 'file.pt' is no module of clipx.models.initial; .*; "
    "write model.initial.name=checkpoint model.initial.path=file.pt",
    "model.initial=runs/b": "model.initial: .*; "
    "write model.initial.name=checkpoint model.initial.path=runs/b",
    "model.initial=laion2b_s34b_b79k": "model.initial: .*; "
    "write model.initial.name=pretrained model.initial.tag=laion2b_s34b_b79k",
    "model.initial=chekpoint": "model.initial: 'chekpoint' is no module of clipx.models.initial; "
    "did you mean 'checkpoint'?$",
    "duration=3": "duration: 3 has no unit; write '3 epochs', '3 steps' or '3 samples'$",
    "log_every=10": "log_every: 10 has no unit; write '10 epochs', '10 steps' or '10 samples'$",
    "checkpoint_every=15": "checkpoint_every: 15 has no unit; "
    "write '15 epochs', '15 steps' or '15 minutes'$",
    "stop_after=x": "stop_after: 'x' is not a time; write for example '15 minutes', '23h30m' or "
    "3600$",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def errors_of_outline(path: Path, overrides: list[str]) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_outline("clipx.training.config", "TrainConfig", read(path, overrides), where="x")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("override", list(GUESSES))
def test_an_error_guesses_what_was_meant(base: Path, override: str) -> None:
    (line,) = errors_of_outline(base, [override])
    pattern = re.escape(GUESSES[override]).replace(r"\.\*", ".*").replace(r"\$", "$")
    assert re.match(pattern, line), line


def test_the_outline_gives_the_messages_of_the_classes_themselves(base: Path) -> None:
    wrong = [*GUESSES, "seed=-1", "data.group=label", "loss=infonc", "evaluators.a.path=x"]
    for override in wrong:
        with pytest.raises(UserError) as caught:
            load(TrainConfig, base, [override])
        full = [line.strip() for line in str(caught.value).splitlines()[1:]]
        assert errors_of_outline(base, [override]) == full


def schema(cls: type) -> Any:
    """Fields with types, bounds and defaults. Without docstrings, and without a default of null,
    which the outline also has in place of a default that a function makes."""

    def stripped(part: Any) -> Any:
        if isinstance(part, list):
            return [stripped(item) for item in part]
        if not isinstance(part, dict):
            return part
        kept = {}
        for key, item in part.items():
            is_doc = key == "description" and isinstance(item, str)
            if not is_doc and not (key == "default" and item is None):
                kept[key] = stripped(item)
        return kept

    return stripped(TypeAdapter(cls).json_schema())


@pytest.mark.parametrize(
    "module", ["training.config.TrainConfig", "data.config.DataConfig", *MODULES]
)
def test_the_outline_has_the_fields_types_and_defaults_of_each_class(module: str) -> None:
    name = "Config"
    if module.endswith(("TrainConfig", "DataConfig")):
        module, _, name = module.rpartition(".")
    cls = vars(importlib.import_module(f"clipx.{module}"))[name]
    assert schema(Outline().value(f"clipx.{module}", name)) == schema(cls)


def test_every_config_of_the_repository_fits_the_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    files = sorted(Path("configs/run").glob("*.yaml"))
    assert len(files) > 10
    for file in files:
        check_outline("clipx.training.config", "TrainConfig", read(file), where=str(file))


def test_a_component_of_the_users_own_is_checked_only_when_it_is_imported(base: Path) -> None:
    data = read(base, ["loss={name: my_lab.no_such_loss, margin: 3}"])
    check_outline("clipx.training.config", "TrainConfig", data, where="x")


def test_hints_for_runs_are_not_given_for_other_configs() -> None:
    @config
    class Small:
        size: int = 1

    with pytest.raises(UserError, match=r"lr: unknown key; known: size$"):
        load(Small, None, ["lr=3"])


COMMANDS: dict[str, str] = {
    "train {run} batch_size=64": "in clipx: global_batch_size=64",
    "train {run} duration=3": "duration: 3 has no unit; write '3 epochs'",
    "train {run} model=ViT-B-32": "write model.name=ViT-B-32",
    "train {run} model.name=ViT-B-33": "did you mean ViT-B-32",
    "train {run} model.name=nowhere.json": "model file nowhere.json does not exist",
    "train {run} loss=infonc": "did you mean 'infonce'?",
    "train {run} --precision amp_bf16": "--precision amp_bf16  ->  precision=bf16",
    "train --model ViT-B-32 --lr=1e-3": "a YAML file comes first, such as configs/run/",
    "train nowhere.yaml": "config nowhere.yaml does not exist",
    "config show {run} --epochs 3": "--epochs 3  ->  duration='3 epochs'",
    "config show {run} lr=3": "in clipx: optim.lr=3",
    "data verify {run} data.window=0": "data.window: ",
    "data verify shards.tar data.windows=1": "windows: unknown key; did you mean 'window'?",
    "data verify pairs.csv": "pairs.csv is a table, and a path means shards here. Give a config: "
    "the YAML file of a run with data: {{sources: {{pairs: {{name: table, path: pairs.csv}}}}}}",
    "data bench {run} lr=3": "in clipx: optim.lr=3",
    "mine {folder} {run} lr=3 --out x": "in clipx: optim.lr=3",
    "eval {folder}/nowhere": "model {folder}/nowhere does not exist",
    "eval {folder}/rum": "(did you mean {folder}/run?)",
    "eval {folder}/run --set {folder}/pet": "test set {folder}/pet does not exist "
    "(did you mean {folder}/pets?)",
    "eval {folder}/run --set {folder}/empty": "{folder}/empty is no test set: ",
    "eval {folder}/pets": "is a test set, no model; write clipx eval MODEL --set {folder}/pets",
}
SCRIPT = """
import sys
from clipx.cli import main
for line in sys.stdin.read().splitlines():
    try:
        main(line.split())
    except SystemExit as end:
        print(end.code, "torch" in sys.modules, file=sys.stderr)
    print("====", file=sys.stderr)
"""


def test_mistakes_of_commands_are_told_before_torch_is_imported(base: Path) -> None:
    folder = base.parent
    (folder / "run").mkdir()
    (folder / "empty").mkdir()
    (folder / "pets/cat").mkdir(parents=True)
    (folder / "pets/cat/0.png").write_bytes(b"")
    (folder / "pets/classnames.txt").write_text("cat\n")
    places = {"run": base, "folder": folder}
    commands = [command.format(**places) for command in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    outputs = done.stderr.split("====\n")[:-1]
    assert len(outputs) == len(commands)
    for command, message, output in zip(commands, COMMANDS.values(), outputs, strict=True):
        assert message.format(**places) in output, (command, output)
        assert output.endswith("2 False\n"), (command, output)
        assert "Traceback" not in output


def test_a_config_without_mistakes_is_loaded_by_its_class(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a new process, where the class has not been imported yet."""
    monkeypatch.delitem(sys.modules, "clipx.training.config")
    monkeypatch.setattr(importlib.import_module("clipx.training"), "config", None)
    loaded = load_config(base, ["optim.lr=1e-3"])
    assert type(loaded) is sys.modules["clipx.training.config"].TrainConfig
    assert loaded.optim.lr == 1e-3


# Values that the peer would get, for flags whose hint has a value that clipx checks.
SAMPLES: dict[str, str] = {
    "batch_size": "64",
    "beta1": "0.9",
    "beta2": "0.98",
    "csv_caption_key": "title",
    "csv_img_key": "filepath",
    "device": "cpu",
    "imagenet_val": "/data/imagenet",
    "lock_image_unlocked_groups": "2",
    "lock_text_unlocked_layers": "2",
    "log_every_n_steps": "100",
    "lr_scheduler": "cosine",
    "model": "ViT-B-32",
    "momentum": "0.9",
    "opt": "adamw",
    "precision": "amp_bf16",
    "pretrained": "laion2b_s34b_b79k",
    "report_to": "tensorboard",
    "seed": "0",
    "train_data": "data/{000..127}.tar",
    "val_data": "data/val.tar",
}
TABLE = ("data={sources: {pairs: {name: table, path: x.csv}}}",)
PREPARED = {
    "csv_img_key": TABLE,
    "zeroshot_frequency": ("evaluators.NAME={name: zero_shot, path: x}",),
}


@pytest.mark.parametrize("flag", [*SETTINGS, "pretrained"])
def test_the_setting_of_a_flag_can_be_used_as_it_is_printed(base: Path, flag: str) -> None:
    hint = setting_for(flag, SAMPLES.get(flag, "3"))
    assert hint is not None
    overrides = [word for word in shlex.split(hint.partition(" (")[0]) if "=" in word]
    assert overrides
    overrides = [word.replace("=ROWS", "=4") for word in overrides]
    load(TrainConfig, base, [*PREPARED.get(flag, ()), *overrides])


def test_the_flags_are_those_of_open_clip() -> None:
    spec = importlib.util.find_spec("open_clip_train.params")
    assert spec is not None
    source = Path(str(spec.origin)).read_text()
    flags = set(re.findall(r'"--([a-z0-9-]+)"', source))
    assert len(flags) > 80
    names: set[str] = {*SETTINGS, *REASONS, *SHORT_NAMES.values()}
    assert {name.replace("_", "-") for name in names} - flags == set()


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("train a.yaml --lr 1e-3 seed=1", ["--lr 1e-3  ->  optim.lr=1e-3"]),
        ("train --lr=1e-3", ["--lr 1e-3  ->  optim.lr=1e-3"]),
        (
            "train --grad-checkpointing --local-loss a.yaml",
            [
                "--grad-checkpointing  ->  grad_checkpointing=true",
                "--local-loss  ->  pools always compare local rows with global columns",
            ],
        ),
        ("train --train-data p.csv", ["--train-data p.csv  ->  data.sources.pairs.name=table "]),
        (
            "train --val-data v.csv",
            [
                "--val-data v.csv  ->  evaluators.val.name=validation_loss "
                "evaluators.val.source.name=table evaluators.val.source.path=v.csv"
            ],
        ),
        (
            "train --pretrained a/b.pt",
            [
                "--pretrained a/b.pt  ->  model.initial.name=checkpoint model.initial.path=a/b.pt",
            ],
        ),
        (
            "train --report-to wandb",
            ["--report-to wandb  ->  metrics go to JSON lines, and with tensorboard=true "],
        ),
        ("train --lr-scheduler const", ["--lr-scheduler const  ->  optim.schedule.kind=constant"]),
        ("train --opt timm/lamb", ["--opt timm/lamb  ->  optim.kind=lamb"]),
        ("train --speed 3", ["--speed 3  ->  no setting of this name; `clipx config show"]),
        ("train a.yaml seed=1", []),
    ],
)
def test_flags_on_the_command_line_are_explained(words: str, lines: list[str]) -> None:
    found = explain_flags(words.split())
    assert len(found) == len(lines)
    for line, expected in zip(found, lines, strict=True):
        assert line.startswith(expected)
