"""Writes docs/settings.md: every setting with its type, default and docstring.

python docs/reference/settings.py
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from clipx import durations
from clipx.config import components, to_data
from clipx.data.preprocessing import Preprocessing
from clipx.eval_verb import Suite
from clipx.training.config import TrainConfig

PAGE = Path(__file__).parents[1] / "settings.md"
INTRODUCTION = """\
# Settings

<!-- Written by `python docs/reference/settings.py` from the docstrings of the code. -->

Every setting of a run, in the order of `clipx config show`. A setting is a key of a YAML file, or
`key=value` on the command line, where a dotted path leads into sections: `optim.schedule.kind=wsd`.

Where the type says *component*, `name` chooses a file of a folder, and the other keys are its
settings: `loss: {name: infonce, label_smoothing: 0.1}`, or `loss=infonce` if the defaults will do.
A module of your own goes by its dotted path ([extending.md](extending.md)).

| type | what is written |
|---|---|
| duration | `2000 steps`, `3 epochs`, `400M samples` |
| time | `90 minutes`, `23h30m`, or a number of seconds |
| interval | a duration or a time |
"""
FAMILIES = {
    "clipx.data.sources": "Sources",
    "clipx.models.initial": "Initial weights",
    "clipx.objectives": "Objectives",
    "clipx.losses": "Losses",
    "clipx.evaluators": "Evaluators",
}
"""Title of each family of components. A family that is not named has its module's name."""
NAMED_TYPES = {
    durations.DurationText: "duration",
    durations.TimeText: "time",
    durations.IntervalText: "interval",
}


def text() -> str:
    """The page."""
    parts = [INTRODUCTION, "## A run\n", *section(TrainConfig, "", level=3)]
    shared: dict[str, type] = {}  # sections of components, by name; several components have `views`
    for family in families():
        folder = family.replace(".", "/")
        parts.append(f"## {title_of(family)}\n\nFiles of [`{folder}/`](../{folder}).\n")
        for name in components(family):
            module = importlib.import_module(f"{family}.{name}")
            parts.append(f"### {name}\n\n{escaped(paragraph(module.__doc__))}\n")
            parts += table(module.Config, "")
            shared |= sections_of(module.Config)
    parts.append("## Sections of components\n")
    for name, cls in shared.items():
        parts += [f"### {name}\n", *table(cls, f"{name}.")]
    parts += ["## Other files\n", "### A suite of test sets: `clipx eval --suite`\n"]
    parts += table(Suite, "")
    parts += ["### `preprocess_cfg` of a model JSON\n", *table(Preprocessing, "")]
    return "\n".join(parts).rstrip("\n") + "\n"


def title_of(family: str) -> str:
    return FAMILIES.get(family, family)


def families() -> list[str]:
    """Packages of components that settings choose from, those of FAMILIES in their order."""
    found = list(FAMILIES)
    for cls in config_classes(TrainConfig):
        for field in fields_of(cls).values():
            family = family_of(field.metadata) or family_in(field.annotation)
            if family is not None and family not in found:
                found.append(family)
    return found


def config_classes(cls: type) -> Iterator[type]:
    """A class of settings and those of its sections."""
    yield cls
    for inner in sections_of(cls).values():
        yield from config_classes(inner)


def fields_of(cls: type) -> dict[str, FieldInfo]:
    return cls.__pydantic_fields__  # type: ignore[attr-defined]


def sections_of(cls: type) -> dict[str, type]:
    """The settings that are sections, and their classes: of `PoolConfig`, also of `PoolConfig |
    None`."""
    found = {}
    for name, field in fields_of(cls).items():
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if is_section(part):
                found[name] = part
    return found


def is_section(annotation: Any) -> bool:
    return inspect.isclass(annotation) and dataclasses.is_dataclass(annotation)


def section(cls: type, prefix: str, *, level: int) -> list[str]:
    """The table of a class and those of its sections, whose headings have `level`."""
    parts = table(cls, prefix)
    for name, inner in sections_of(cls).items():
        parts.append(f"{'#' * level} {prefix}{name}\n")
        parts += section(inner, f"{prefix}{name}.", level=level + 1)
    return parts


def table(cls: type, prefix: str) -> list[str]:
    """The docstring of a class and its settings. prefix: of their dotted paths"""
    lines = []
    # A dataclass without a docstring has its signature for one.
    if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
        lines.append(f"{escaped(paragraph(cls.__doc__))}\n")
    if not fields_of(cls):
        return [*lines, "It has no settings.\n"]
    lines.append("| setting | type | default | meaning |\n|---|---|---|---|")
    for name, field in fields_of(cls).items():
        kind = type_text(field.annotation, field.metadata)
        if name in sections_of(cls):
            anchor = re.sub(r"[^a-z_]", "", f"{prefix}{name}")
            kind = kind.replace("section", f"section [{prefix}{name}](#{anchor})")
        prose = meaning(cls, name) or paragraph(getattr(sections_of(cls).get(name), "__doc__", ""))
        row = [f"`{prefix}{name}`", kind, default_text(field), escaped(prose)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return [*lines, ""]


def meaning(cls: type, name: str) -> str:
    """The docstring of a setting, in the class or the base that declares it."""
    for owner in cls.__mro__:
        if name in vars(owner).get("__annotations__", {}):
            return field_docstrings(owner).get(name, "")
    raise LookupError(f"{cls} has no field {name}")


@functools.cache
def field_docstrings(cls: type) -> dict[str, str]:
    """Python keeps no docstrings of fields, so they are read from the source."""
    (node,) = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    docstrings: dict[str, str] = {}
    for line, after in zip(node.body, node.body[1:], strict=False):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docstrings[line.target.id] = paragraph(after.value.value)
    return docstrings


def type_text(annotation: Any, metadata: list[Any]) -> str:
    """A type as a reader of YAML sees it, with its bounds."""
    if family := family_of(metadata):
        title = title_of(family).lower()
        return f"component: [{title}](#{title.replace(' ', '-')})"
    if metadata and (name := NAMED_TYPES.get(Annotated[(annotation, *metadata)])):
        return name
    limits = bounds(metadata)
    if not limits:
        return plain_type(annotation)
    # Bounds are those of the value, not of the null that may stand in its place.
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    if type(None) not in typing.get_args(annotation):
        return f"{plain_type(annotation)} {limits}"
    return " or ".join([*(f"{plain_type(part)} {limits}" for part in parts), "null"])


def bounds(metadata: list[Any]) -> str:
    """`from 1 to 100`, `above 0 and below 1`, `not empty`; "" without bounds."""
    found: dict[type, Any] = {}
    for item in metadata:
        for kind, attribute in ((Ge, "ge"), (Gt, "gt"), (Le, "le"), (Lt, "lt")):
            if isinstance(item, kind):
                found[kind] = number(getattr(item, attribute))
        if isinstance(item, MinLen):
            return "not empty"
    if Ge in found and Le in found:
        return f"from {found[Ge]} to {found[Le]}"
    words = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
    return " and ".join(f"{words[kind]} {value}" for kind, value in found.items())


def plain_type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if annotation in NAMED_TYPES:
        return NAMED_TYPES[annotation]
    if origin is Annotated:
        return type_text(arguments[0], flat_metadata(arguments[1:]))
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(plain_type(part) for part in arguments)
    if origin is dict:
        return f"mapping of {plain_type(arguments[0])} to {plain_type(arguments[1])}"
    if origin is list:
        return f"list of {plain_type(arguments[0])}"
    if origin is tuple:
        kinds = list(dict.fromkeys(plain_type(part) for part in arguments))
        return f"list of {len(arguments)}: {', then '.join(kinds)}"
    if is_section(annotation):
        return "section"
    names = {bool: "true or false", int: "integer", float: "number", str: "text"}
    return names.get(annotation) or ("null" if annotation is type(None) else annotation.__name__)


def flat_metadata(metadata: tuple[Any, ...]) -> list[Any]:
    """With the bounds of `Field(gt=0)` in place of the Field."""
    flat: list[Any] = []
    for item in metadata:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    return flat


def family_of(metadata: list[Any] | tuple[Any, ...]) -> str | None:
    """The package that `component(package)` names in the metadata of a type."""
    for item in metadata:
        if not isinstance(item, BeforeValidator) or not isinstance(item.func, functools.partial):
            continue
        finder = item.func.args[0]
        if isinstance(finder, functools.partial):
            return finder.args[0]
    return None


def family_in(annotation: Any) -> str | None:
    """The package of a component inside of a type, such as `dict[str, component(package)]`."""
    for part in typing.get_args(annotation):
        family = family_of(getattr(part, "__metadata__", ())) or family_in(part)
        if family is not None:
            return family
    return None


def default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    value = to_data(field.get_default(call_default_factory=True))
    if is_section(type(field.get_default(call_default_factory=True))):
        return "its defaults"
    if isinstance(value, float):
        return f"`{number(value)}`"
    flow = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return f"`{flow.removesuffix('...' + chr(10)).strip()}`"


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def paragraph(docstring: str | None) -> str:
    """The first paragraph, on one line."""
    return re.sub(r"\s+", " ", (docstring or "").strip().split("\n\n")[0])


def escaped(prose: str) -> str:
    """A docstring as markdown: `_` and `*` outside of code are letters, not emphasis."""
    parts = prose.split("`")
    # An underscore inside of a word is a letter to markdown too.
    special = re.compile(r"([*<\[]|\b_|_\b)")
    parts[::2] = [special.sub(r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
