"""Configuration as data: YAML layers, then `key=value` overrides, then frozen dataclasses that
complain once, at the door.

A component is picked by `name`, which is a module: `loss: {name: infonce}` is
`clipx/losses/infonce.py`, and any dotted path outside clipx works the same way. The module holds
`Config`, a frozen dataclass with `build()`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import PydanticCustomError

from clipx.config_errors import complaints, did_you_mean, unusable_values
from clipx.types import UserError
from clipx.yaml_text import MAX_DEPTH, YamlError, parse_yaml

T = TypeVar("T")
Data = dict[str, Any]


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass, typed and closed. An unknown key and a number that is
    not finite are errors."""
    settings = ConfigDict(extra="forbid", allow_inf_nan=False)
    return pydantic_dataclass(frozen=True, config=settings)(cls)  # type: ignore[return-value]


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
    lines = unusable_values(data)
    if not lines:
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            lines = complaints(error, cls)
    raise UserError("\n  ".join([f"config {where} does not fit:", *lines]))


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> Data:
    """The data of a YAML file over that of the files it `extends`, whose paths are relative to
    it."""
    try:
        resolved = path.resolve()
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist (looked from {Path.cwd()})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"config {str(path)!r} cannot be read: {error}") from error
    if resolved in above:
        raise UserError(f"config {path} extends itself, by way of {above[-1]}")
    data = {} if data is None else data  # an empty file
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
        merged = merge(merged, read_layers(path.parent / base, (*above, resolved)))
    return merge(merged, data)


def parse_override(text: str) -> Data:
    """`optim.lr=1e-3` -> {"optim": {"lr": "1e-3"}}; values are YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")) or key.count(".") > MAX_DEPTH:
        raise UserError(
            f"override {text!r} is not of the form key=value, for example optim.lr=5e-4"
        )
    try:
        data: Any = parse_yaml(value)
    except YamlError as error:
        raise UserError(f"override {text!r}: the value is not YAML: {error}") from error
    for part in reversed(key.split(".")):
        data = {part: data}
    return data


def merge(base: Data, top: Data) -> Data:
    """`top` over `base`, key by key in every mapping.

    Settings stay when only a `name` changes: `model.name=other.json` keeps `model.initial`. The
    setting of a component that the new name does not have is then an unknown key, so that none is
    lost silently. An empty mapping, or a plain name for a component, replaces all settings.
    """
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        if isinstance(value, dict) and value and isinstance(old, dict):
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
        raise PydanticCustomError("nested", "{lines}", {"lines": complaints(error, cls)}) from error


def _config_class(family: str, name: str) -> type:
    module_name = name if "." in name and name[0] != "." else f"{family}.{name}"
    try:
        if not all(part.isidentifier() for part in module_name.split(".")):
            raise ModuleNotFoundError(name=module_name)
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module is there, and misses a dependency of its own
        hint = did_you_mean(name, _modules(family))
        context = {"text": f"{name!r} is no module of {family}{hint}"}
        raise PydanticCustomError("component", "{text}", context) from error
    if "Config" not in vars(module):
        context = {"text": f"module {module_name} holds no class Config"}
        raise PydanticCustomError("component", "{text}", context)
    return module.Config


def _modules(family: str) -> list[str]:
    folder = Path(str(importlib.import_module(family).__file__)).parent
    files = (path for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return sorted(path.stem for path in files if "class Config" in path.read_text("utf-8"))


def _component_name(cls: type) -> str | None:
    if cls.__name__ != "Config":
        return None
    family, _, name = cls.__module__.rpartition(".")
    return name if family in _FAMILIES else cls.__module__
