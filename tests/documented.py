"""The blocks of code in the README and the pages of docs."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

import yaml
from ranks import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?:^\*Needs ([^*]+)\.\*\n\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """needs: what the reader must have before the block runs, as the line above it says; "" if it
    runs after the quickstart
    """

    page: str
    line: int
    language: str
    needs: str
    content: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Lines of a shell block, without their comments."""
        lines = [shlex.split(line, comments=True) for line in self.content.splitlines()]
        return [shlex.join(words) for words in lines if words]

    @property
    def mappings(self) -> list[dict[str, Any]]:
        """The parts of a YAML block: where a key comes again, the next example begins."""
        parts: list[list[str]] = [[]]
        keys: set[str] = set()
        for line in self.content.splitlines(keepends=True):
            key = re.match(r"\w+(?=:)", line)
            if key and key[0] in keys:
                parts.append([])
                keys = set()
            if key:
                keys.add(key[0])
            parts[-1].append(line)
        return [yaml.safe_load("".join(part)) for part in parts]


def blocks(language: str) -> list[Block]:
    """Those of one language, in the order of the pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            if match[2] == language:
                line = text.count("\n", 0, match.start(3))
                found.append(Block(page.name, line, match[2], match[1] or "", match[3]))
    return found
