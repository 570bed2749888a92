"""Icons of Iconify: one drawing per name and style, captioned by name, style and category."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clipx.demo.drawings import (
    Drawing,
    license_of,
    load_set,
    stable_hash,
    svg_of,
    tidy,
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


class Parts(NamedTuple):
    """An icon's name taken apart: `bicycle-20-outline` -> (`bicycle`, `outline`, 20)."""

    core: str
    style: str
    size: int


def concept(core: str) -> str:
    """The words of a name without the number of a variant: `user-02` -> `user`, `dice-3` stays."""
    name = words(core)
    return name if _DIGITS_MATTER.search(name) else re.sub(r"( \d+)+$", "", name)


def name_splitter(icon_set: dict[str, Any]) -> Callable[[str], Parts]:
    """Takes names apart by the set's own table of suffixes or prefixes, else by common endings."""
    tables = []
    for part, form in (("suffixes", r"^(?P<core>.+?)-(?P<token>{})$"),
                       ("prefixes", r"^(?P<token>{})-(?P<core>.+)$")):  # fmt: skip
        if titles := icon_set.get(part):
            tokens = sorted((re.escape(str(t)) for t in titles if t), key=len, reverse=True)
            tables.append((titles, re.compile(form.format("|".join(tokens)))))

    def split(name: str) -> Parts:
        for titles, pattern in tables:
            if found := pattern.match(name):
                title = titles[found["token"]].lower()
                size = _SIZE.search(title)
                style = _SIZE.sub("", title).strip()
                return Parts(found["core"], style, int(size[1]) if size else 24)
            if "" in titles:
                return Parts(name, _SIZE.sub("", titles[""].lower()).strip(), 24)
        found = _COMMON_STYLE.match(name)
        return Parts(found[1], found[2], 24) if found else Parts(name, "", 24)

    return split


def _best_sizes(
    icon_set: dict[str, Any], split: Callable[[str], Parts]
) -> dict[tuple[str, str], str]:
    """(core, style) -> the name of its drawing in the size liked best."""
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for name in visible_icons(icon_set):
        core, style, size = split(name)
        label = concept(core)
        if len(label) < 3 or label.isdigit():
            continue
        liked = _SIZES_BY_PREFERENCE
        rank = liked.index(size) if size in liked else len(liked)
        if (core, style) not in best or rank < best[core, style][0]:
            best[core, style] = (rank, name)
    return {part: name for part, (_, name) in best.items()}


def _other_names(icon_set: dict[str, Any], split: Callable[[str], Parts]) -> dict[str, list[str]]:
    """Name -> concepts of its aliases, apart from those that turn or mirror the drawing."""
    others = defaultdict(list)
    for alias, entry in (icon_set.get("aliases") or {}).items():
        if not entry.get("hidden") and not any(change in entry for change in _TRANSFORMS):
            label = concept(split(alias).core)
            if len(label) >= 3 and not label.isdigit() and not re.search(r"\dx$", label):
                others[entry["parent"]].append(label)
    return others


def _categories(icon_set: dict[str, Any]) -> dict[str, list[str]]:
    categories = defaultdict(list)
    for category, names in (icon_set.get("categories") or {}).items():
        for name in names:
            categories[name].append(words(category.replace("&", "and").replace("/", " ")))
    return categories


def icon_drawings(modules: Path, prefixes: Iterable[str], max_styles: int) -> Iterator[Drawing]:
    """Up to `max_styles` drawings of every name of the sets, styles chosen by a stable hash."""
    for prefix in prefixes:
        icon_set = load_set(modules, prefix)
        split = name_splitter(icon_set)
        others, categories = _other_names(icon_set, split), _categories(icon_set)
        styles_of = defaultdict(list)
        for (core, style), name in _best_sizes(icon_set, split).items():
            styles_of[core].append((stable_hash(prefix + name, 1 << 30), style, name))
        for core, drawn in styles_of.items():
            label = concept(core)
            for _, style, name in sorted(drawn)[:max_styles]:
                groups = categories[name]
                yield Drawing(
                    key=f"{prefix}_{name}",
                    captions=icon_captions(label, style, groups, others[name]),
                    label=label,
                    kind="icon",
                    source=prefix,
                    license=license_of(icon_set),
                    svg=svg_of(icon_set, name),
                    style=style,
                    group=groups[0] if groups else "",
                )


def icon_captions(
    label: str, style: str, categories: list[str], other_names: list[str]
) -> tuple[str, ...]:
    """The name alone, with its style, with its categories, and the names of its aliases."""
    captions = [label, f"{label} icon"]
    if style not in ("", "regular", "default"):
        captions.append(f"{_STYLE_WORDS.get(style, style)} icon of {label}")
    captions += [f"{label}, {category}" for category in categories[:2] if category not in label]
    captions += [f"{name} icon" for name in other_names[:3] if name != label]
    return tidy(captions)
