"""YAML text from a person, read strictly: YAML 1.1 without surprises that change or lose a value.

- A key that occurs twice in one mapping is an error; YAML would keep the last one.
- `2024-11-28` is text; YAML would make a date of it.
- References (`&a`, `*a`) are allowed, but not to the value that they are part of, and not so many
  that the expanded value is larger than `MAX_VALUES`.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Keys, items and scalars of a document with its references expanded."""
MAX_DEPTH = 64


class YamlError(ValueError):
    """The text is not YAML, or not a value that a config can hold."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML document; None for an empty one. Raises YamlError."""
    if _bracket_depth(text) > MAX_DEPTH:  # for which PyYAML takes the square of the depth
        raise YamlError(f"it is nested more than {MAX_DEPTH} levels deep")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except RecursionError as error:
        raise YamlError(f"it is nested more than {MAX_DEPTH} levels deep") from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        # PyYAML raises the other kinds for tagged scalars such as `!!int` without a number and for
        # integers of more digits than Python converts.
        raise YamlError(str(error) or type(error).__name__) from error
    _check_size(value)
    return value


def parse_mapping(text: str) -> dict[str, Any] | None:
    """The mapping in a YAML file that clipx itself has written; None where it is damaged."""
    try:
        value = parse_yaml(text)
    except YamlError:
        return None
    return value if isinstance(value, dict) else None


def _bracket_depth(text: str) -> int:
    """How deep brackets are nested, those in quoted text included."""
    depth = deepest = 0
    for letter in text:
        depth = max(0, depth + (letter in "[{") - (letter in "]}"))
        deepest = max(deepest, depth)
    return deepest


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without dates and without duplicate keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012  the name and type are PyYAML's
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            self._refuse_duplicates(node)
        return super().construct_mapping(node, deep=deep)

    def _refuse_duplicates(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            # Tag and text: `1` and `"1"` are different keys. `<<` may stand several times.
            name = f"{key.tag} {key.value}"
            if name in seen and not key.tag.endswith(":merge"):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice; keep one", key.start_mark
                )
            seen.add(name)


def _check_size(value: Any) -> None:
    """Walk the value as a config is walked later. Raises YamlError."""
    left = MAX_VALUES
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        left -= 1
        if depth > MAX_DEPTH:
            raise YamlError(
                f"it is nested more than {MAX_DEPTH} levels deep, or a value refers to itself"
            )
        if left < 0:
            raise YamlError(f"it has more than {MAX_VALUES:,} values, references expanded")
        if isinstance(item, dict):
            stack += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | set | tuple):
            stack += [(part, depth + 1) for part in item]
