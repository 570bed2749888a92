"""docs/migrate.md has every flag of the peer's own parser, and only settings that exist."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from clipx.cli import parse
from clipx.data.preprocessing import Preprocessing
from clipx.migrate.params import DEFAULTS
from clipx.models.model_json import KNOWN
from clipx.open_clip_flags import REASONS, SETTINGS, setting_for
from clipx.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/migrate.md").read_text()
PACKAGE = ROOT / "clipx"
FLAGS, SENTENCES, BENCHMARK = (part.split("\n## ")[0] for part in PAGE.split("\n## ")[2:5])


def peer_flags() -> dict[str, Any]:
    """Flag -> default, from the parser's file. The trainer is in the wheel of open_clip, and clipx
    never imports it: that needs packages which clipx does not have."""
    if version("open_clip_torch") != "3.3.0":
        pytest.skip("the page is about the flags of open_clip 3.3.0")
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parents[1] / "open_clip_train/params.py"
    flags = {}
    for call in ast.walk(ast.parse(file.read_text())):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        if call.func.attr == "add_argument":
            (name,) = (ast.literal_eval(argument) for argument in call.args)
            settings = {k.arg: k.value for k in call.keywords}
            default = settings.get("default")
            flags[name] = None if default is None else ast.literal_eval(default)
    return flags


def rows(section: str) -> list[list[str]]:
    """The cells of the rows of the table of a section."""
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def in_ticks(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_flag_of_the_peer_has_one_row() -> None:
    flags = list(peer_flags())
    assert len(flags) == 90
    assert [in_ticks(row[0])[0] for row in rows(FLAGS)] == flags


def test_the_importer_knows_every_flag_with_its_default() -> None:
    peer = {
        name.removeprefix("--").replace("-", "_"): value for name, value in peer_flags().items()
    }
    assert peer == DEFAULTS


def test_a_flag_without_a_setting_has_the_reason_that_commands_print() -> None:
    reasons = {"cache_dir": REASONS["cache_dir"]}  # which the page has as variables
    for flag, setting, *remarks in rows(FLAGS):
        if setting == "none":
            name = in_ticks(flag)[0].removeprefix("--").replace("-", "_")
            reasons[name] = re.sub(r" \(\[.*", "", remarks[0]).replace("`", "")
    expected = {flag: reason.replace("`", "") for flag, reason in REASONS.items()}
    assert reasons == expected


@pytest.mark.parametrize("flag", [*SETTINGS, "pretrained"])
def test_the_hint_for_a_flag_has_the_setting_of_the_page(flag: str) -> None:
    (row,) = (row for row in rows(FLAGS) if row[0] == f"`--{flag.replace('_', '-')}`")
    hint = setting_for(flag, "tensorboard" if flag == "report_to" else "3")
    assert hint is not None
    keys = re.findall(r"([\w.]+)=", hint)
    keys = [re.sub(r"^(evaluators|data\.sources)\.\w+", r"\1.NAME", key) for key in keys]
    of_page = in_ticks(row[1])
    assert any(key == path or key.startswith(f"{path}.") for key in keys for path in of_page)


def components(family: str) -> list[type]:
    folder = PACKAGE / family.removeprefix("clipx.").replace(".", "/")
    modules = [importlib.import_module(f"{family}.{p.stem}") for p in sorted(folder.glob("*.py"))]
    return [module.Config for module in modules if "Config" in vars(module)]


FAMILIES = {
    "objective": "clipx.objectives",
    "loss": "clipx.losses",
    "initial": "clipx.models.initial",
    "evaluators": "clipx.evaluators",
    "sources": "clipx.data.sources",
}


def exists(path: str) -> bool:
    """Whether a dotted path is a setting of a run. NAME stands for any name in a mapping."""
    classes: list[Any] = [TrainConfig]
    parts = path.split(".")
    for place, part in enumerate(parts):
        if part == "NAME":
            continue
        hints = [get_type_hints(cls, include_extras=True) for cls in classes]
        owners = [hint[part] for hint in hints if part in hint]
        if part == "name" and place and parts[place - 1] in FAMILIES:
            return True  # which selects the component
        if not owners:
            return False
        family = FAMILIES.get(part)
        inner = [owner for owner in owners if dataclasses.is_dataclass(owner)]
        for owner in owners:
            inner += [arg for arg in get_args(owner) if dataclasses.is_dataclass(arg)]
        classes = components(family) if family else inner
    return True


MODEL_SECTIONS: dict[str, set[str]] = {
    "vision_cfg": {field.name for field in dataclasses.fields(CLIPVisionCfg)},
    "text_cfg": {field.name for field in dataclasses.fields(CLIPTextCfg)},
    "preprocess_cfg": {field.name for field in dataclasses.fields(Preprocessing)},
}


def check_cell(cell: str) -> None:
    kind, separator, _ = cell.partition(": ")
    for name in in_ticks(cell):
        if separator and kind == "model JSON":
            section, _, key = name.rpartition(".")
            assert key in (MODEL_SECTIONS[section] if section else KNOWN), name
        elif separator and kind == "command":
            assert parse([*shlex.split(name)[1:], *_wanted(name)]).run is not None
        elif not separator:
            assert exists(name), f"{name} is no setting of clipx"


def _wanted(command: str) -> list[str]:
    """Arguments that a command named without any needs."""
    return ["FOLDER", "a text"] if command == "clipx search" else []


@pytest.mark.parametrize("section", [FLAGS, SENTENCES, BENCHMARK], ids=["flags", "st", "bench"])
def test_every_setting_exists(section: str) -> None:
    table = rows(section)
    assert len(table) > 5
    for row in table:
        check_cell(row[1])


@pytest.mark.parametrize("path", ["batch_size", "optim.learning_rate", "evaluators.NAME.folder"])
def test_the_search_for_settings_finds_wrong_ones(path: str) -> None:
    assert not exists(path)


def test_evaluators_losses_and_objectives_in_remarks_exist() -> None:
    kinds = {"evaluator": "evaluators", "loss": "losses", "objective": "objectives"}
    found = re.findall(r"\b(evaluator|loss|objective) `(\w+)`", PAGE)
    assert len(found) > 8
    for kind, name in found:
        assert (PACKAGE / kinds[kind] / f"{name}.py").exists(), name
