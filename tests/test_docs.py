"""What the documentation shows is there and runs. Commands of the blocks that take longer run in
e2e/test_documented_commands.py."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import PAGES, Block, blocks
from ranks import ROOT
from test_architecture import config_fields
from tiny_runs import write_config, write_corpus

import clipx
from clipx.cli import parse
from clipx.config import build, config, merge
from clipx.distributed.pool import LocalPool
from clipx.training.config import TrainConfig

SHELL = blocks("sh")
COMMANDS = [line for block in SHELL for line in block.commands]
CHECKED = ("bash launch/", "python benchmarks/", "pip install ")
"""Lines that do not run here: the files and extras that they name exist."""


def test_the_blocks_were_found() -> None:
    assert len(SHELL) > 30
    assert len(blocks("python")) > 8
    assert len(blocks("yaml")) > 12
    languages = {"", "sh", "python", "yaml"}
    named = re.findall(r"^```(\w*)$", "\n".join(page.read_text() for page in PAGES), re.MULTILINE)
    assert set(named) <= languages


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_shell_block_runs_or_says_what_it_needs(block: Block) -> None:
    """e2e/test_documented_commands.py runs the lines of clipx."""
    others = [line for line in block.commands if not line.startswith(("clipx ", *CHECKED))]
    assert block.needs or not others


@pytest.mark.parametrize("line", [x for x in COMMANDS if x.startswith("clipx ")])
def test_clipx_commands_in_the_documentation_parse(line: str) -> None:
    assert parse(shlex.split(line)[1:]).run is not None


@pytest.mark.parametrize("line", [x for x in COMMANDS if not x.startswith("clipx ")])
def test_files_and_extras_in_commands_of_the_documentation_exist(line: str) -> None:
    named = re.findall(r"\b(?:launch|benchmarks|configs)/[\w./]+", line)
    missing = [name for name in named if not (ROOT / name).exists() and "mine" not in name]
    assert not missing
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"pip install .*\[([\w,]+)\]", line)
    known = project["optional-dependencies"]
    assert [name for text in extras for name in text.split(",") if name not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            missing.append(target)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors that a renderer gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


BASE: dict[str, Any] = {
    "run_dir": "runs/mine",
    "model": {"name": "ViT-B-32"},
    "data": {"shards": "pairs.tar"},
    "global_batch_size": 256,
    "duration": "1 epochs",
}
MIXTURE = {"shards": None}  # of the base, where a block has `sources`


@pytest.fixture
def components_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """my_lab.evaluators.catalog of extending.md."""

    @config
    class Config:
        path: str
        every: str | None = None

    for name in ("my_lab", "my_lab.evaluators", "my_lab.evaluators.catalog"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["my_lab.evaluators.catalog"].Config = Config


@pytest.mark.usefixtures("components_of_a_user")
@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_a_yaml_block_is_part_of_a_config(block: Block) -> None:
    for mapping in block.mappings:
        base = BASE
        if "sources" in mapping.get("data", {}):
            base = merge(BASE, {"data": MIXTURE})
        loaded = build(TrainConfig, merge(base, mapping), where=str(block))
        assert all(hasattr(loaded, key) for key in mapping)


def test_the_yaml_of_the_readme_needs_no_other_settings() -> None:
    (block,) = [block for block in blocks("yaml") if block.page == "README.md"]
    (mapping,) = block.mappings
    assert build(TrainConfig, mapping, where="README.md").global_batch_size == 4096


def test_the_python_of_the_readme_runs_as_printed_after_the_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model of one step in place of the quickstart's."""
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    settings = write_config(tmp_path / "configs", write_corpus(tmp_path / "corpus", samples=24))
    clipx.train(settings, "duration=1 steps", "run_dir=runs/demo")
    (block,) = [block for block in blocks("python") if block.page == "README.md"]
    names: dict[str, Any] = {}
    exec(block.content, names)
    shapes = [tuple(names[name].shape) for name in ("image", "text", "cosine", "probability")]
    assert shapes == [(2, 16), (2, 16), (2, 2), (1, 3)]
    torch.testing.assert_close(names["probability"].sum(1), torch.ones(1))


def test_the_python_of_extending_md_runs() -> None:
    """With a few rows in place of what an evaluator has computed."""
    names: dict[str, Any] = {"keys": ["a", "b"], "hits": torch.tensor([1.0, 0.0]), "median": 3.0}
    for block in blocks("python"):
        if block.page == "extending.md":
            exec(block.content, names)
    assert names["Config"](gamma=3).gamma == 3
    assert names["result"].metrics["shop-top1"] == 0.5
    # Rows (1, 0) and (0, 1), each with the other's column for its own: 0.2 - 0 + 1.
    rows = torch.eye(2)
    out = names["Triplet"]()(rows, rows.flip(0), pool=LocalPool())
    assert out.loss.item() == pytest.approx(1.2)


def test_every_python_block_runs_in_a_test_or_says_what_it_needs() -> None:
    """README.md and extending.md here, python.md in test_python_page.py, search.md in
    e2e/test_documented_commands.py."""
    pages = {"README.md", "extending.md", "python.md", "search.md"}
    assert {block.page for block in blocks("python") if not block.needs} == pages


def test_the_tour_reads_twelve_files_with_a_question_and_an_answer_each() -> None:
    tour = (ROOT / "docs/tour.md").read_text()
    stops = re.findall(r"^### (\d+)\. \[([\w/.]+)\]\(\.\./clipx/\2\)$", tour, re.MULTILINE)
    assert [int(number) for number, _ in stops] == list(range(1, 13))
    assert len(re.findall(r"^\*[^*\n]+\*$", tour, re.MULTILINE)) == 12  # questions
    answers = tour.partition("## Answers")[2]
    assert len(re.findall(r"^\d+\. ", answers, re.MULTILINE)) == 12


def reference_page(name: str) -> tuple[str, str]:
    """(the committed page, the page that its script writes now)"""
    script = runpy.run_path(str(ROOT / f"docs/reference/{name}.py"))
    return (ROOT / f"docs/{name}.md").read_text(encoding="utf-8"), script["text"]()


def test_every_file_is_listed_as_its_docstring_describes_it() -> None:
    """If this fails: python docs/reference/files.py"""
    committed, generated = reference_page("files")
    assert committed == generated
    files = [path for path in (ROOT / "clipx").rglob("*.py") if path.read_text().strip()]
    paths = [str(path.relative_to(ROOT)) for path in files if path.name != "__main__.py"]
    assert [path for path in paths if f"(../{path})" not in committed] == []


def test_every_setting_is_listed_as_its_docstring_describes_it() -> None:
    """If this fails: python docs/reference/settings.py"""
    committed, generated = reference_page("settings")
    assert committed == generated
    rows = re.findall(r"^\| `([\w.]+)` .*\| (.*) \|$", committed, re.MULTILINE)
    assert len(rows) > 200
    assert [setting for setting, meaning in rows if not meaning.strip()] == []
    # Of each class, also of one that no other class names as a section.
    named = {setting.rpartition(".")[2] for setting, _ in rows}
    assert [field for _, _, field in config_fields() if field not in named] == []
