"""Parse YAML strictly: YAML 1.1 without rules that silently change or lose a value.

- A key that occurs twice in a mapping is an error; YAML would keep the last one.
- `2024-11-28` is text, not a date.
- References (`&a`, `*a`) must not form a cycle, nor expand to more than `MAX_VALUES` values.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Keys, items and scalars of a document with its references expanded."""
MAX_DEPTH = 64


class YamlError(ValueError):
    """The text is not YAML, or its value does not fit into a config."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML document; None for an empty one. Raises YamlError."""
    # Count brackets, also those in quoted text, before PyYAML sees them: it takes time in
    # proportion to the square of the depth.
    depth = 0
    for letter in text:
        if letter in "[{":
            depth += 1
        elif letter in "]}":
            depth = max(0, depth - 1)
        if depth > MAX_DEPTH:
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
    """The mapping in a file that clipx has written; None if it is damaged."""
    try:
        value = parse_yaml(text)
    except YamlError:
        return None
    return value if isinstance(value, dict) else None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without dates and without duplicate keys."""

    # PyYAML's attribute: first character of a scalar -> [(tag, pattern)].
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [resolver for resolver in resolvers if not resolver[0].endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        # Of a node that is no mapping, PyYAML reports the kind.
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            # Tag and text: `1` and `"1"` are different keys. `<<` may stand several times.
            name = f"{key.tag} {key.value}"
            if name in seen and not key.tag.endswith(":merge"):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice; keep one", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def _check_size(value: Any) -> None:
    """Count values and depth with references expanded. Raises YamlError."""
    num_values = 0
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        num_values += 1
        if depth > MAX_DEPTH:
            raise YamlError(
                f"it is nested more than {MAX_DEPTH} levels deep, or a value refers to itself"
            )
        if num_values > MAX_VALUES:
            raise YamlError(f"it has more than {MAX_VALUES:,} values, references expanded")
        if isinstance(item, dict):
            parts = [*item.keys(), *item.values()]
        elif isinstance(item, list | set | tuple):
            parts = list(item)
        else:
            continue
        stack += [(part, depth + 1) for part in parts]
