"""What the documentation shows is there and runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from clipx.cli import parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_lines() -> list[str]:
    """The command lines of all `sh` blocks, without their comments."""
    blocks = [
        b for page in PAGES for b in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    return [
        shlex.join(words)
        for b in blocks
        for line in b.splitlines()
        if (words := shlex.split(line, comments=True))
    ]


@pytest.mark.parametrize("line", [x for x in shell_lines() if x.startswith("clipx ")])
def test_clipx_commands_in_the_documentation_parse(line: str) -> None:
    assert parse(shlex.split(line)[1:]).run is not None


@pytest.mark.parametrize("line", [x for x in shell_lines() if not x.startswith("clipx ")])
def test_files_in_commands_of_the_documentation_exist(line: str) -> None:
    named = re.findall(r"\b(?:launch|benchmarks|configs)/[\w./]+", line)
    missing = [name for name in named if not (ROOT / name).exists() and "mine" not in name]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


def test_the_yaml_of_the_readme_is_a_config(tmp_path: Path) -> None:
    from clipx.config import load
    from clipx.training.config import TrainConfig

    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    assert load(TrainConfig, tmp_path / "mine.yaml").global_batch_size == 4096


def test_the_tour_visits_every_file_of_the_training_path() -> None:
    tour = (ROOT / "docs/tour.md").read_text()
    path = ["cli", "cli_data", "config", "types", "embed", "files", "results"]
    folders = ("data", "models", "losses", "objectives", "training", "distributed")
    folders += ("checkpoints", "evaluators", "metrics")
    files = [f"{name}.py" for name in path]
    files += [
        f"{d}/{f.name}"
        for d in folders
        for f in sorted((ROOT / "clipx" / d).glob("*.py"))
        if not f.name.startswith("_")
    ]
    assert [name for name in files if name not in tour] == []
