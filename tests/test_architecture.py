"""The rules of docs and STYLE that a machine can check. Each finds its offenders by name."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import clipx

PACKAGE = Path(clipx.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCE = {path: path.read_text(encoding="utf-8") for path in FILES}
TREES = {path: ast.parse(text) for path, text in SOURCE.items()}
MAX_FILE, MAX_FUNCTION, MAX_TRAIN = 250, 60, 80
FAMILIES = ("losses", "objectives", "evaluators", "models.initial", "data.sources")
CONFIG_NAMES = {"cfg", "config", "args", "arguments", "self"}


def shown(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def test_the_package_was_found() -> None:
    assert len(FILES) > 30
    assert {"train", "rate"} <= {name for _, name, _ in functions()}


def test_files_have_at_most_250_lines_or_their_docstring_says_why() -> None:
    """A longer file has `250 lines` in its docstring, beside the reason."""
    long = [
        f"{shown(path)}: {len(text.splitlines())} lines"
        for path, text in SOURCE.items()
        if len(text.splitlines()) > MAX_FILE
        and f"{MAX_FILE} lines" not in (ast.get_docstring(TREES[path]) or "")
    ]
    assert long == []


def functions() -> Iterator[tuple[Path, str, int]]:
    """(file, name, lines from `def` to the last) of every function."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_fit_a_screen() -> None:
    long = [
        f"{shown(path)}: {name} has {lines} lines"
        for path, name, lines in functions()
        if lines > (MAX_TRAIN if name == "train" else MAX_FUNCTION)
    ]
    assert long == []


NO_COMPONENTS = {  # modules that components share
    "primitives",
    "distillation",
    "false_negatives",
    "global_normalizer",
    "captioned_set",
    "classifier",
    "corruptions",
    "distributed",
    "identities",
    "labeled_set",
    "mined",
    "momentum_copy",
    "objective",
    "pairs",
    "queue",
    "sample_source",
    "teacher",
    "test_sets",
    "views",
}


def modules(family: str) -> list[str]:
    folder = PACKAGE / family.replace(".", "/")
    names = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    return sorted(names - NO_COMPONENTS)


MODULES = [f"{family}.{name}" for family in FAMILIES for name in modules(family)]


def test_the_open_families_have_members() -> None:
    assert {"losses.infonce", "evaluators.zero_shot", "evaluators.retrieval"} <= set(MODULES)
    assert all(modules(family) for family in FAMILIES)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_of_an_open_family_has_a_frozen_config_that_builds_its_class(
    module: str,
) -> None:
    """`losses/sigmoid.py` has `Config` and, by `build()` without arguments, `Sigmoid`."""
    found = importlib.import_module(f"clipx.{module}")
    assert dataclasses.is_dataclass(found.Config)
    assert found.Config.__dataclass_params__.frozen
    signature = inspect.signature(found.Config.build)
    # An objective is built from the parts of its run: the model, the loss.
    arguments = ["self", "parts"] if module.startswith("objectives.") else ["self"]
    assert list(signature.parameters) == arguments
    built = signature.return_annotation
    assert built.lower() == module.rpartition(".")[2].replace("_", "")
    assert inspect.isclass(vars(found)[built])


def config_fields() -> list[tuple[str, str, str]]:
    """(file, class, field) of every class with the decorator @config."""
    out = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            if not any(isinstance(d, ast.Name) and d.id == "config" for d in node.decorator_list):
                continue
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    out.append((shown(path), node.name, line.target.id))
    return out


def test_every_config_field_is_read_somewhere() -> None:
    fields = config_fields()
    assert ("clipx/training/config.py", "TrainConfig", "global_batch_size") in fields
    read = set(re.findall(r"\.(\w+)", "\n".join(SOURCE.values())))
    unread = [f"{path}: {cls}.{field}" for path, cls, field in fields if field not in read]
    assert unread == []


def questions(tree: ast.Module) -> Iterator[ast.Call]:
    """getattr(x, ...), hasattr(x, ...) and setattr(x, ...) with an x named like a config."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        asked = node.args[0]
        name = asked.id if isinstance(asked, ast.Name) else None
        name = asked.attr if isinstance(asked, ast.Attribute) else name
        if node.func.id in ("getattr", "hasattr", "setattr") and name in CONFIG_NAMES:
            yield node


def test_nothing_asks_a_config_whether_a_field_exists() -> None:
    found = [f"{shown(p)}:{call.lineno}" for p, tree in TREES.items() for call in questions(tree)]
    assert found == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("getattr(cfg, 'a', 1)", 1),
        ("hasattr(self.config, 'a')", 1),
        ("hasattr(self, 'a')", 1),
        ("getattr(module, name)", 0),
        ("config.a", 0),
    ],
)
def test_the_search_for_such_questions_finds_them(code: str, count: int) -> None:
    assert len(list(questions(ast.parse(code)))) == count


def test_no_two_test_files_have_the_same_name() -> None:
    """pytest imports them by their names, and refuses the second."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
