"""Configuration as data: YAML layers, then `key=value` overrides, then frozen dataclasses that
complain once, at the door.

A component is picked by `name`, which is a module: `loss: {name: infonce}` is
`clipx/losses/infonce.py`, and any dotted path outside clipx works the same way. The module holds
`Config`, a frozen dataclass with `build()`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import PydanticCustomError

from clipx.types import UserError

T = TypeVar("T")
Data = dict[str, Any]


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass, typed and closed (an unknown key is an error)."""
    return pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)  # type: ignore[return-value]


def component(family: str) -> Any:
    """The type of a field that holds a component of `family`, for example
    `component("clipx.losses")`."""
    return Annotated[Any, BeforeValidator(partial(_resolve, family))]


def load(cls: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Read a config file and its `extends:` layers, apply `a.b=value` overrides, check everything.

    Raises UserError with one line for each complaint, by dotted path.
    """
    data = read_layers(path) if path is not None else {}
    for override in overrides:
        data = merge(data, parse_override(override))
    return build(cls, data, where=str(path) if path else "the command line")


def build(cls: type[T], data: Data, *, where: str) -> T:
    """Plain data -> checked instance. Raises UserError."""
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _complaints(error, cls))
        raise UserError(f"config {where} does not fit:\n{lines}") from error


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> Data:
    """The data of a YAML file over that of the files it `extends`, whose paths are relative to
    it."""
    if path.resolve() in above:
        raise UserError(f"config {path} extends itself, by way of {above[-1]}")
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist (looked from {Path.cwd()})") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise UserError(
            f"config {path} must be a mapping of keys to values, not a {type(data).__name__}"
        )
    bases = data.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"config {path}: extends must be a path or a list of paths, not {bases!r}")
    merged: Data = {}
    for base in bases:
        merged = merge(merged, read_layers(path.parent / base, (*above, path.resolve())))
    return merge(merged, data)


def parse_override(text: str) -> Data:
    """`optim.lr=1e-3` -> {"optim": {"lr": "1e-3"}}; values are YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(
            f"override {text!r} is not of the form key=value, for example optim.lr=5e-4"
        )
    try:
        data: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override {text!r}: the value is not YAML: {error}") from error
    for part in reversed(key.split(".")):
        data = {part: data}
    return data


def merge(base: Data, top: Data) -> Data:
    """`top` over `base`, mapping by mapping.

    An empty mapping clears what was there; a component of another `name` starts afresh.
    """
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        if both and value and value.get("name", old.get("name")) == old.get("name"):
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out


def to_data(value: Any) -> Any:
    """A config as plain data that `build` turns into an equal one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = _component_name(type(value))
        data = {"name": name} if name else {}
        return data | {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_data(item) for item in value]
    return value


def to_yaml(value: Any) -> str:
    return yaml.safe_dump(to_data(value), sort_keys=False, width=100, allow_unicode=True)


def differences(a: Data, b: Data, prefix: str = "") -> list[str]:
    """Dotted paths at which two configs' data differ."""
    out = []
    for key in dict.fromkeys([*a, *b]):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            out += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            out.append(f"{prefix}{key}")
    return out


_FAMILIES: set[str] = set()


def _resolve(family: str, value: Any) -> Any:
    """`{"name": "infonce", ...}` or `"infonce"` -> the Config of that module."""
    _FAMILIES.add(family)
    if dataclasses.is_dataclass(value):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    settings = dict(settings) if isinstance(settings, dict) else {}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise PydanticCustomError(
            "component", "needs a `name`; known: {known}", {"known": ", ".join(_modules(family))}
        )
    cls = _config_class(family, name)
    try:
        return TypeAdapter(cls).validate_python(settings)
    except ValidationError as error:
        raise PydanticCustomError(
            "nested", "{lines}", {"lines": _complaints(error, cls)}
        ) from error


def _config_class(family: str, name: str) -> type:
    module_name = name if "." in name and name[0] != "." else f"{family}.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module is there, and misses a dependency of its own
        hint = _did_you_mean(name, _modules(family))
        context = {"text": f"{name!r} is no module of {family}{hint}"}
        raise PydanticCustomError("component", "{text}", context) from error
    if "Config" not in vars(module):
        context = {"text": f"module {module_name} holds no class Config"}
        raise PydanticCustomError("component", "{text}", context)
    return module.Config


def _modules(family: str) -> list[str]:
    folder = Path(str(importlib.import_module(family).__file__)).parent
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _component_name(cls: type) -> str | None:
    if cls.__name__ != "Config":
        return None
    family, _, name = cls.__module__.rpartition(".")
    return name if family in _FAMILIES else cls.__module__


def _complaints(error: ValidationError, cls: type) -> list[str]:
    """One line for each complaint: dotted path, what is wrong, what was probably meant."""
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        kind, given = item["type"], item.get("input")
        if kind == "nested":
            lines += [f"{path}.{line}" for line in item["ctx"]["lines"]]
        elif kind == "unexpected_keyword_argument":
            names = _fields_at(cls, item["loc"][:-1])
            lines.append(f"{path}: unknown key{_did_you_mean(str(item['loc'][-1]), names)}")
        elif kind == "missing":
            lines.append(f"{path}: missing")
        else:
            shown = "" if kind == "component" else f" (given: {given!r})"
            lines.append(f"{path}: {item['msg'].removeprefix('Value error, ')}{shown}")
    return lines


def _fields_at(cls: Any, loc: Sequence[int | str]) -> list[str]:
    """Field names of the dataclass that sits at `loc` below `cls`."""
    for part in loc:
        if not dataclasses.is_dataclass(cls):
            return []
        hints = {f.name: f.type for f in dataclasses.fields(cls)}
        hint = hints.get(str(part))
        if isinstance(hint, str):  # `from __future__ import annotations` makes them strings
            hint = vars(sys.modules[cls.__module__]).get(hint)
        cls = hint
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _did_you_mean(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
