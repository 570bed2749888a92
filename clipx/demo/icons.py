"""Icons of Iconify: one drawing per name and style, captioned by name, style and category."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clipx.demo.drawings import (
    Drawing,
    icon_drawing,
    load_set,
    stable_hash,
    visible_icons,
    words,
)

_SIZES_BY_PREFERENCE = (24, 20, 32, 28, 48, 16, 12, 10)
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


class NameParts(NamedTuple):
    """The parts of an icon's name: `bicycle-20-outline` -> (`bicycle`, `outline`, 20)"""

    core: str
    style: str
    size: int


def concept(core: str) -> str:
    """The words of a name without the number of a variant: `user-02` -> `user`, `dice-3` stays."""
    name = words(core)
    return name if _DIGITS_MATTER.search(name) else re.sub(r"( \d+)+$", "", name)


def _is_word(label: str) -> bool:
    return len(label) >= 3 and not label.isdigit()


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
            if match := pattern.match(name):
                # Titles are such as `24px Outline`.
                title = titles[match["token"]].lower()
                size = _SIZE.search(title)
                style = _SIZE.sub("", title).strip()
                return NameParts(match["core"], style, int(size[1]) if size else 24)
            if "" in titles:  # the title of names without suffix
                return NameParts(name, _SIZE.sub("", titles[""].lower()).strip(), 24)
        if match := _COMMON_STYLE.match(name):
            return NameParts(match[1], match[2], 24)
        return NameParts(name, "", 24)

    return split


def _preference(size: int) -> int:
    if size in _SIZES_BY_PREFERENCE:
        return _SIZES_BY_PREFERENCE.index(size)
    return len(_SIZES_BY_PREFERENCE)


def _styles(
    icon_set: dict[str, Any], split: Callable[[str], NameParts]
) -> dict[str, dict[str, str]]:
    """core -> style -> the name of the drawing in the preferred size"""
    styles: dict[str, dict[str, str]] = {}
    for name in visible_icons(icon_set):
        core, style, size = split(name)
        if not _is_word(concept(core)):
            continue
        names = styles.setdefault(core, {})  # one size of each style
        if style not in names or _preference(size) < _preference(split(names[style]).size):
            names[style] = name
    return styles


def _other_names(
    icon_set: dict[str, Any], split: Callable[[str], NameParts]
) -> dict[str, list[str]]:
    """Icon -> concepts of its aliases, except where they rotate or mirror the drawing."""
    others = defaultdict(list)
    for alias, entry in (icon_set.get("aliases") or {}).items():
        if entry.get("hidden") or any(change in entry for change in _TRANSFORMS):
            continue
        label = concept(split(alias).core)
        if _is_word(label) and not re.search(r"\dx$", label):
            others[entry["parent"]].append(label)
    return others


def _categories(icon_set: dict[str, Any]) -> dict[str, list[str]]:
    """Icon -> its categories"""
    categories = defaultdict(list)
    for category, names in (icon_set.get("categories") or {}).items():
        text = words(category.replace("&", "and").replace("/", " "))
        for name in names:
            categories[name].append(text)
    return categories


def icon_drawings(modules: Path, prefixes: Iterable[str], max_styles: int) -> Iterator[Drawing]:
    """Up to `max_styles` drawings of each name of the sets, with styles chosen by a stable hash."""
    for prefix in prefixes:
        icon_set = load_set(modules, prefix)
        split = name_splitter(icon_set)
        other_names = _other_names(icon_set, split)
        categories = _categories(icon_set)
        for core, styles in _styles(icon_set, split).items():
            label = concept(core)
            # By a hash, so that no style is preferred.
            names = sorted(styles.items(), key=lambda item: stable_hash(prefix + item[1], 1 << 30))
            for style, name in names[:max_styles]:
                groups = categories[name]
                yield icon_drawing(
                    icon_set,
                    name,
                    kind="icon",
                    label=label,
                    captions=_icon_captions(label, style, groups, other_names[name]),
                    style=style,
                    group=groups[0] if groups else "",
                )


def _icon_captions(
    label: str, style: str, categories: list[str], other_names: list[str]
) -> list[str]:
    """The name alone, with its style, with its categories, and the names of its aliases."""
    captions = [label, f"{label} icon"]
    if style not in ("", "regular", "default"):
        captions.append(f"{_STYLE_WORDS.get(style, style)} icon of {label}")
    captions += [f"{label}, {category}" for category in categories[:2] if category not in label]
    captions += [f"{name} icon" for name in other_names[:3] if name != label]
    return captions
