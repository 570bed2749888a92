"""Shows clipx's docstrings as markdown: lines such as `images: one or several` become a list.

An extension of griffe, which reads the docstrings for mkdocstrings.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ARGUMENT = re.compile(r"^((?:\*{0,2}\w+)(?:, \w+)*): (.*)$")


class ArgumentLists(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """`a: text` with its indented lines -> an item of a list; other lines as they are."""
    lines: list[str] = []
    in_item = False
    for line in docstring.splitlines():
        argument = ARGUMENT.match(line)
        if argument and argument[1] != "Raises":
            if not in_item and lines and lines[-1]:
                lines.append("")  # a list needs an empty line before it
            lines.append(f"- `{argument[1]}`: {argument[2]}")
            in_item = True
            continue
        if in_item and line and not line.startswith(" "):
            if lines[-1]:
                lines.append("")  # and the paragraph after it too
            in_item = False
        lines.append(line)
    return "\n".join(lines)
