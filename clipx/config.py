"""Configuration as data: YAML layers, then `key=value` overrides, then frozen dataclasses, which
report all mistakes at once.

A component is chosen by `name`, which is a module: `loss: {name: infonce}` is
`clipx/losses/infonce.py`, and a dotted path outside clipx works the same way. The module defines
`Config`, a frozen dataclass with `build()`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import PydanticCustomError

from clipx.config_errors import complaints, did_you_mean, explained, unusable_values
from clipx.open_clip_flags import WEIGHT_FILES
from clipx.types import UserError
from clipx.yaml_text import MAX_DEPTH, YamlError, parse_yaml

T = TypeVar("T")
Data = dict[str, Any]


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass that checks types. Unknown keys and numbers that are not
    finite are errors."""
    settings = ConfigDict(extra="forbid", allow_inf_nan=False)
    return pydantic_dataclass(frozen=True, config=settings)(cls)  # type: ignore[return-value]


def component(family: str) -> Any:
    """The type of a field for a component of a family, such as `component("clipx.losses")`."""
    return Annotated[Any, BeforeValidator(partial(resolve, partial(_config_class, family)))]


def load(cls: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Read a config file with its `extends:` layers, apply `a.b=value` overrides and validate.

    Raises UserError with one line for each mistake, by dotted path.
    """
    return build(cls, read(path, overrides), where=str(path) if path else "the command line")


def read(path: Path | None, overrides: Sequence[str] = ()) -> Data:
    """The data of a config file with its `extends:` layers and `a.b=value` overrides. Raises
    UserError."""
    data = read_layers(path) if path is not None else {}
    for override in overrides:
        data = merge(data, parse_override(override))
    return data


def build(cls: type[T], data: Data, *, where: str) -> T:
    """Plain data -> validated instance. Raises UserError."""
    # First, because pydantic's messages could not show such values.
    lines = list(unusable_values(data))
    if not lines:
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            lines = complaints(error, cls)
    raise UserError("\n  ".join([f"config {where} does not fit:", *lines]))


def read_layers(path: Path, children: tuple[Path, ...] = ()) -> Data:
    """The data of a YAML file, merged over the files that it `extends`, whose paths are relative to
    it.

    children: files that extend this one, to find cycles
    """
    try:
        resolved = path.resolve()
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist (looked from {Path.cwd()})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"config {str(path)!r} cannot be read: {error}") from error
    if resolved in children:
        raise UserError(f"config {path} extends itself, by way of {children[-1]}")
    if data is None:  # an empty file, or comments only
        data = {}
    if not isinstance(data, dict):
        raise UserError(
            f"config {path} must be a mapping of keys to values, not a {type(data).__name__}"
        )
    parents = data.pop("extends", [])
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"config {path}: extends must be a path or a list of paths, not {parents}")
    merged: Data = {}
    for parent in parents:  # a later one wins over an earlier one
        merged = merge(merged, read_layers(path.parent / parent, (*children, resolved)))
    return merge(merged, data)


def parse_override(text: str) -> Data:
    """`optim.lr=1e-3` -> {"optim": {"lr": "1e-3"}}; values are YAML. Raises UserError."""
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH + 1:
        raise UserError(
            f"override {text!r} is not of the form key=value, for example optim.lr=5e-4"
        )
    try:
        data: Any = parse_yaml(value)
    except YamlError as error:
        raise UserError(f"override {text!r}: the value is not YAML: {error}") from error
    for part in reversed(parts):
        data = {part: data}
    return data


def merge(base: Data, top: Data) -> Data:
    """`top` over `base`, key by key in each mapping.

    A new `name` keeps the settings beside it: `model.name=other.json` keeps `model.initial`. A
    setting that the new component does not have is then an unknown key, so none is lost silently.
    An empty mapping, or a plain name for a component, replaces all settings.
    """
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        # An empty mapping is a value: it is how a layer removes all entries of those below.
        if isinstance(value, dict) and value and isinstance(old, dict):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def to_data(value: Any) -> Any:
    """A config as plain data, from which `build` makes an equal one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        data = {}
        cls = type(value)
        if cls.__name__ == "Config":  # a component: the name that selects it
            module = cls.__module__
            data["name"] = module.rpartition(".")[2] if module.startswith("clipx.") else module
        for field in dataclasses.fields(value):
            data[field.name] = to_data(getattr(value, field.name))
        return data
    if isinstance(value, dict):
        return {key: to_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_data(item) for item in value]
    return value


def to_yaml(value: Any) -> str:
    return yaml.safe_dump(to_data(value), sort_keys=False, width=100, allow_unicode=True)


def resolve(find_class: Callable[[Any], type | None], value: Any) -> Any:
    """`{"name": "infonce", ...}` or `"infonce"` -> the Config of that module.

    find_class: name -> its class, or None if the settings cannot be checked: they stay as they are
    """
    if dataclasses.is_dataclass(value):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    settings = dict(settings) if isinstance(settings, dict) else {}
    cls = find_class(settings.pop("name", None))
    if cls is None:
        return value
    try:
        return TypeAdapter(cls).validate_python(settings)
    except ValidationError as error:
        # pydantic cannot nest errors, so this one carries the lines to `complaints`.
        raise PydanticCustomError("nested", "{lines}", {"lines": complaints(error, cls)}) from error


def _config_class(family: str, name: Any) -> type:
    check_name(family, name)
    # A name with dots is a module of the user's own, such as `my_lab.losses.focal`.
    module_name = name if "." in name else f"{family}.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module exists, and misses a dependency of its own
        raise unknown_component(family, name) from error
    if "Config" not in vars(module):
        raise explained(f"module {module_name} holds no class Config")
    return module.Config


def check_name(family: str, name: Any) -> None:
    """Raise for a name that no module can have."""
    if not isinstance(name, str):
        raise explained(f"needs a `name`; known: {', '.join(components(family))}")
    is_file = name.endswith(WEIGHT_FILES)
    if is_file or not all(part.isidentifier() for part in name.split(".")):
        raise unknown_component(family, name)


def unknown_component(family: str, name: str) -> PydanticCustomError:
    hint = did_you_mean(name, components(family))
    return explained(f"{name!r} is no module of {family}{hint}")


def components(family: str) -> list[str]:
    """Names of the components of a family."""
    spec = importlib.util.find_spec(family)
    assert spec is not None, "families are packages of clipx"
    folder = Path(str(spec.origin)).parent
    names = []
    # Read as text, because importing all components takes seconds.
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_") and "class Config" in path.read_text("utf-8"):
            names.append(path.stem)
    return names
