"""Check a config without running the modules of its classes.

Most of these modules import torch, which takes seconds, and a mistake in a config should be
reported at once. A config class is therefore read from its source: the names, types and defaults of
its fields are those of the class itself, so that pydantic gives the same messages. What cannot be
read so, such as a component outside clipx, is accepted here and checked when its module is
imported.
"""

from __future__ import annotations

import ast
import builtins
import importlib
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from clipx.config import (
    Data,
    build,
    check_name,
    components,
    config,
    resolve,
    unknown_component,
)

PACKAGE = Path(__file__).parent
LIGHT = ("collections.abc", "typing", "pydantic", "clipx.config", "clipx.durations", "clipx.types")
"""Modules to be imported: they do not import torch."""


class Unreadable(Exception):
    """The value of a name is not known without running its module."""


def check_outline(module: str, name: str, data: Data, *, where: str) -> None:
    """Check plain data against the config class `name` of a module. Raises UserError as `build`
    does."""
    build(Outline().value(module, name), data, where=where)


class Outline:
    """The values of names of clipx's modules, by their source."""

    def __init__(self) -> None:
        self._trees: dict[str, ast.Module] = {}
        self._values: dict[tuple[str, str], Any] = {}

    def value(self, module: str, name: str) -> Any:
        """A config class, a type or a constant. Raises Unreadable."""
        key = (module, name)
        if key not in self._values:
            self._values[key] = self._read(module, name)
        return self._values[key]

    def _read(self, module: str, name: str) -> Any:
        if (module, name) == ("clipx.config", "component"):
            return self._component  # in place of the function that imports the modules
        if module in LIGHT:
            return getattr(importlib.import_module(module), name)
        for node in self._tree(module).body:
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        return self.value(node.module, alias.name)
            elif isinstance(node, ast.ClassDef) and node.name == name:
                return self._config_class(module, node)
            elif isinstance(node, ast.Assign) and name in map(_name_of, node.targets):
                return self._evaluate(module, node.value)
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise Unreadable(f"{name} of {module}")

    def _tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            package, *parts = module.split(".")
            path = PACKAGE.joinpath(*parts)
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if package != PACKAGE.name or not file.exists():
                raise Unreadable(module)
            self._trees[module] = ast.parse(file.read_text(encoding="utf-8"))
        return self._trees[module]

    def _evaluate(self, module: str, node: ast.expr) -> Any:
        # Functions would look for their names when they are called.
        if any(isinstance(part, ast.Lambda | ast.comprehension) for part in ast.walk(node)):
            raise Unreadable(ast.unparse(node))
        code = compile(ast.Expression(node), f"<outline of {module}>", "eval")
        return eval(code, {"__builtins__": {}}, Names(self, module))

    def _evaluate_or(self, default: Any, module: str, node: ast.expr) -> Any:
        try:
            return self._evaluate(module, node)
        except Unreadable:
            return default

    def _config_class(self, module: str, node: ast.ClassDef) -> type:
        if "config" not in map(_name_of, node.decorator_list):
            if any(isinstance(line, ast.AnnAssign) for line in node.body):
                raise Unreadable(f"{node.name} of {module}")
            return type(node.name, (), {})  # a base without settings
        bases = tuple(self._evaluate(module, base) for base in node.bases)
        annotations: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for line in node.body:
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                continue
            field = line.target.id
            annotations[field] = self._evaluate_or(Any, module, line.annotation)
            if line.value is not None:
                # The outline is only compared with data, so that another default does no harm.
                defaults[field] = self._evaluate_or(None, module, _without_factory(line.value))
        content = {"__annotations__": annotations, "__module__": module, **defaults}
        return config(type(node.name, bases, content))

    def _component(self, family: str) -> Any:
        """As `clipx.config.component`."""
        return Annotated[Any, BeforeValidator(partial(resolve, partial(self._named, family)))]

    def _named(self, family: str, name: Any) -> type | None:
        """The class of a component; None if it cannot be read, as for one outside clipx."""
        check_name(family, name)
        if "." in name:
            return None
        if name not in components(family):
            raise unknown_component(family, name)
        try:
            return self.value(f"{family}.{name}", "Config")
        except Unreadable:
            return None


class Names(dict[str, Any]):
    """The names of a module, each read when `eval` meets it."""

    def __init__(self, outline: Outline, module: str) -> None:
        super().__init__()
        self._outline = outline
        self._module = module

    def __missing__(self, name: str) -> Any:
        return self._outline.value(self._module, name)


def _name_of(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _without_factory(node: ast.expr) -> ast.expr:
    """`Field(default_factory=lambda: ..., ge=1)` -> `Field(default=None, ge=1)`"""
    if not isinstance(node, ast.Call):
        return node
    keywords = []
    for keyword in node.keywords:
        if keyword.arg == "default_factory" and isinstance(keyword.value, ast.Lambda):
            keyword = ast.keyword("default", ast.Constant(None))
        keywords.append(keyword)
    call = ast.Call(node.func, node.args, keywords)
    return ast.fix_missing_locations(ast.copy_location(call, node))
