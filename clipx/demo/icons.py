"""Icons of Iconify: one drawing per name and style, captioned by name, style and category."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from clipx.demo.drawings import (
    Drawing,
    icon_drawing,
    load_set,
    stable_hash,
    visible_icons,
    words,
)

_SIZE_RANK = {24: 0, 20: 1, 32: 2, 28: 3, 48: 4, 16: 5, 12: 6, 10: 7}  # lower is preferred
_SIZE = re.compile(r"\b(\d+)(px)?\b")
_COMMON_STYLE = re.compile(
    r"(.+)-(outline|outlined|filled|fill|solid|line|bold|thin|light|duotone|twotone|rounded|sharp)$"
)
_DIGITS_MATTER = re.compile(
    r"\b(number|numeric|digit|dice|die|circle|square|hexagon|filter|timer|counter|looks|grid"
    r"|rate|version)\b"
)
_STYLE_WORDS = {"fill": "filled", "outlined": "outline", "twotone": "two-tone"}
_TRANSFORMS = ("rotate", "hFlip", "vFlip", "left", "top", "width", "height")


NameParts = tuple[str, str, int]
"""Core, style and size in an icon's name: `bicycle-20-outline` -> (`bicycle`, `outline`, 20)"""


def concept(core: str) -> str:
    """The words of a name without the number of a variant: `user-02` -> `user`, `dice-3` stays."""
    name = words(core)
    return name if _DIGITS_MATTER.search(name) else re.sub(r"( \d+)+$", "", name)


def name_splitter(icon_set: dict[str, Any]) -> Callable[[str], NameParts]:
    """Returns a function that splits names by the set's own suffixes or prefixes, else by common
    endings."""
    tables = []
    for attribute, form in (
        ("suffixes", r"^(?P<core>.+?)-(?P<token>{})$"),
        ("prefixes", r"^(?P<token>{})-(?P<core>.+)$"),
    ):
        if titles := icon_set.get(attribute):
            # The longest first: `20-outline` before `outline`
            tokens = sorted((re.escape(str(t)) for t in titles if t), key=len, reverse=True)
            tables.append((titles, re.compile(form.format("|".join(tokens)))))

    def split(name: str) -> NameParts:
        for titles, pattern in tables:
            core = name
            token = ""  # the key of the title of names without suffix
            if match := pattern.match(name):
                core = match["core"]
                token = match["token"]
            if token in titles:
                # Titles are such as `24px Outline`.
                title = titles[token].lower()
                size = _SIZE.search(title)
                style = _SIZE.sub("", title).strip()
                return core, style, int(size[1]) if match and size else 24
        if match := _COMMON_STYLE.match(name):
            return match[1], match[2], 24
        return name, "", 24

    return split


def icon_drawings(modules: Path, prefixes: Iterable[str], max_styles: int) -> Iterator[Drawing]:
    """Up to `max_styles` drawings of each name of the sets, with styles chosen by a stable hash."""
    for prefix in prefixes:
        icon_set = load_set(modules, prefix)
        split = name_splitter(icon_set)
        other_names = _other_names(icon_set, split)
        categories: dict[str, list[str]] = defaultdict(list)  # of each icon
        for category, names in (icon_set.get("categories") or {}).items():
            text = words(category.replace("&", "and").replace("/", " "))
            for name in names:
                categories[name].append(text)
        for core, styles in _styles(icon_set, split).items():
            # By a hash, so that no style is preferred.
            chosen = sorted(styles.items(), key=lambda item: stable_hash(prefix + item[1], 1 << 30))
            for style, name in chosen[:max_styles]:
                label = concept(core)
                captions = [label, f"{label} icon"]
                if style not in ("", "regular", "default"):
                    captions.append(f"{_STYLE_WORDS.get(style, style)} icon of {label}")
                for category in categories[name][:2]:
                    if category not in label:
                        captions.append(f"{label}, {category}")
                for other in other_names[name][:3]:
                    if other != label:
                        captions.append(f"{other} icon")
                yield icon_drawing(
                    icon_set, name, kind="icon", label=label, captions=captions, style=style
                )


def _styles(
    icon_set: dict[str, Any], split: Callable[[str], NameParts]
) -> dict[str, dict[str, str]]:
    """core -> style -> the name of the drawing in the preferred size"""
    styles: dict[str, dict[str, str]] = {}
    preference: dict[tuple[str, str], int] = {}  # of the drawing chosen so far; lower is better
    for name in visible_icons(icon_set):
        core, style, size = split(name)
        label = concept(core)
        if len(label) < 3 or label.isdigit():  # no word
            continue
        rank = _SIZE_RANK.get(size, len(_SIZE_RANK))
        if rank < preference.get((core, style), len(_SIZE_RANK) + 1):
            preference[core, style] = rank
            styles.setdefault(core, {})[style] = name
    return styles


def _other_names(
    icon_set: dict[str, Any], split: Callable[[str], NameParts]
) -> dict[str, list[str]]:
    """Icon -> concepts of its aliases, except where they rotate or mirror the drawing."""
    others = defaultdict(list)
    for alias, entry in (icon_set.get("aliases") or {}).items():
        if entry.get("hidden") or any(change in entry for change in _TRANSFORMS):
            continue
        core, _, _ = split(alias)
        label = concept(core)
        if len(label) >= 3 and not label.isdigit() and not re.search(r"\dx$", label):
            others[entry["parent"]].append(label)
    return others
