"""A drawing before it is rendered, the icon sets of Iconify, and texts that become captions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.demo.packages import ICONIFY
from clipx.types import UserError


@dataclass(frozen=True)
class Drawing:
    """One picture: SVG text, or the path of an SVG file."""

    key: str
    captions: tuple[str, ...]
    label: str
    """The canonical name, which is the class in the test sets."""
    kind: str
    """emoji, flag, icon or clipart"""
    source: str
    license: str
    svg: str = ""
    path: str = ""
    tags: tuple[str, ...] = ()
    style: str = ""

    @property
    def markup(self) -> str:
        return self.svg or Path(self.path).read_text("utf-8", errors="replace")


def geometry(markup: str) -> str:
    """A digest of the paths of an SVG in any order, without colors; empty if it has none."""
    # Not the end of another attribute's name, such as `id=`.
    paths = sorted(re.findall(r'(?<![\w:-])d="([^"]+)"', markup))
    return hashlib.sha1("\n".join(paths).encode()).hexdigest() if paths else ""


def stable_hash(text: str, buckets: int) -> int:
    """A number in [0, buckets), the same on all machines and in all runs."""
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:8], "big") % buckets


def words(name: str) -> str:
    """`arrowUp-left_2` -> `arrow up left 2`"""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.sub(r"[-_\s]+", " ", name).strip().lower()


_PLAIN_QUOTES = str.maketrans("“”‘’", "\"\"''")


def tidy(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions in lower case with plain quotes and single spaces, without empty and repeated
    ones."""
    clean = []
    for caption in captions:
        text = " ".join(caption.translate(_PLAIN_QUOTES).lower().split())
        if text and text not in clean:  # a few captions: no set is needed
            clean.append(text)
    return tuple(clean)


def load_set(modules: Path, prefix: str) -> dict[str, Any]:
    """One Iconify set: `icons`, `aliases`, `info` with author and license, ..."""
    path = modules / ICONIFY / "json" / f"{prefix}.json"
    if not path.is_file():
        raise UserError(
            f"icon set {prefix!r} is missing: no {path}; delete {modules} and run again"
        )
    return json.loads(path.read_text("utf-8"))


def visible_icons(icon_set: dict[str, Any]) -> list[str]:
    """Names of the icons that the set has not retired."""
    return [name for name, icon in icon_set["icons"].items() if not icon.get("hidden")]


def icon_drawing(
    icon_set: dict[str, Any],
    name: str,
    *,
    kind: str,
    label: str,
    captions: Iterable[str],
    tags: tuple[str, ...] = (),
    style: str = "",
) -> Drawing:
    """One icon of a set, in a square with a margin of 6 % of its longer side."""
    prefix = icon_set["prefix"]
    icon = icon_set["icons"][name]
    # Iconify's defaults, then the values of the set, then those of the icon.
    box = {"left": 0, "top": 0, "width": 16, "height": 16}
    for owner in (icon_set, icon):
        for attribute in box:
            box[attribute] = owner.get(attribute, box[attribute])
    side = max(box["width"], box["height"]) * 1.12
    x = box["left"] - (side - box["width"]) / 2
    y = box["top"] - (side - box["height"]) / 2
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{x:g} {y:g} {side:g} {side:g}">{icon["body"]}</svg>'
    )
    return Drawing(
        key=f"{prefix}_{name}",
        captions=tidy(captions),
        label=label,
        kind=kind,
        source=prefix,
        license=license_of(icon_set),
        svg=svg,
        tags=tags,
        style=style,
    )


def license_of(icon_set: dict[str, Any]) -> str:
    """The SPDX name of the set's license, or its title where it has none."""
    terms = icon_set["info"]["license"]
    return terms.get("spdx") or terms.get("title", "")
