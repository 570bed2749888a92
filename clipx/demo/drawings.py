"""Emoji and flags of Iconify with the names and keywords of emojibase.

No text is invented: captions are the names, keywords, styles and categories that the packages ship.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.demo.packages import EMOJIBASE, ICONIFY
from clipx.types import UserError


@dataclass(frozen=True)
class Drawing:
    """One picture before it is rendered: SVG text, or the path of an SVG file."""

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
    group: str = ""

    @property
    def markup(self) -> str:
        return self.svg or Path(self.path).read_text("utf-8", errors="replace")


def geometry(markup: str) -> str:
    """A digest of the paths in an SVG, whatever their colors and order; empty if it has none."""
    paths = sorted(re.findall(r'(?<![\w:-])d="([^"]+)"', markup))
    return hashlib.sha1("\n".join(paths).encode()).hexdigest() if paths else ""


def stable_hash(text: str, buckets: int) -> int:
    """A number in [0, buckets): the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:8], "big") % buckets


def words(name: str) -> str:
    """`arrowUp-left_2` -> `arrow up left 2`."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.sub(r"[-_\s]+", " ", name).strip().lower()


_PLAIN_QUOTES = str.maketrans("“”‘’", "\"\"''")


def tidy(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions in lower case with plain quotes and single spaces, none empty and none twice."""
    clean = (" ".join(text.translate(_PLAIN_QUOTES).lower().split()) for text in captions)
    return tuple(dict.fromkeys(text for text in clean if text))


def load_set(modules: Path, prefix: str) -> dict[str, Any]:
    """One Iconify set: `icons`, `aliases`, `info` with author and license, ..."""
    path = modules / ICONIFY / "json" / f"{prefix}.json"
    if not path.is_file():
        raise UserError(
            f"icon set {prefix!r} is missing: no {path}; delete {modules} and run again"
        )
    return json.loads(path.read_text("utf-8"))


def visible_icons(icon_set: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> icon, without those that their set has retired."""
    return {name: icon for name, icon in icon_set["icons"].items() if not icon.get("hidden")}


def svg_of(icon_set: dict[str, Any], name: str, margin: float = 0.06) -> str:
    """The icon in a square with a margin (a fraction of its longer side) all around."""
    icon = icon_set["icons"][name]
    width, height = (icon.get(side, icon_set.get(side, 16)) for side in ("width", "height"))
    left, top = (icon.get(edge, icon_set.get(edge, 0)) for edge in ("left", "top"))
    side = max(width, height) * (1 + 2 * margin)
    x, y = left - (side - width) / 2, top - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{x:g} {y:g} {side:g} {side:g}">{icon["body"]}</svg>'
    )


def license_of(icon_set: dict[str, Any]) -> str:
    """The SPDX name of the set's license, or its title where it has none."""
    terms = icon_set["info"]["license"]
    return terms.get("spdx") or terms.get("title", "")


@dataclass(frozen=True)
class EmojiName:
    """What emojibase calls one emoji."""

    label: str
    tags: tuple[str, ...]
    nicknames: tuple[str, ...]
    """Its shortcodes in chat programs as words; variants of skin tone have none."""


def _read_emojibase(modules: Path, name: str) -> Any:
    path = modules / EMOJIBASE / "en" / name
    if not path.is_file():
        raise UserError(f"emoji names are missing: no {path}; delete {modules} and run again")
    return json.loads(path.read_text("utf-8"))


def emoji_names(modules: Path) -> dict[str, EmojiName]:
    """Code points as lower-case hex without variation selectors -> name; skin tones included."""
    shortcodes = _read_emojibase(modules, "shortcodes/emojibase.json")
    table = {}
    for record in _read_emojibase(modules, "data.json"):
        for variant in [record, *record.get("skins", [])]:
            codes = shortcodes.get(variant["hexcode"], [])
            codes = [codes] if isinstance(codes, str) else codes
            table[_plain_code(variant["hexcode"])] = EmojiName(
                label=variant["label"],
                tags=tuple(record.get("tags", ())),
                nicknames=tuple(map(words, codes)) if variant is record else (),
            )
    return table


def _plain_code(hexcode: str) -> str:
    return hexcode.lower().replace("-fe0f", "")


def countries(names: dict[str, EmojiName]) -> dict[str, str]:
    """ISO code in lower case -> country, read off the emoji that are two regional indicators."""
    table = {}
    for code, name in names.items():
        points = [int(point, 16) for point in code.split("-")]
        if len(points) == 2 and all(0x1F1E6 <= point <= 0x1F1FF for point in points):
            iso = "".join(chr(point - 0x1F1E6 + ord("a")) for point in points)
            table[iso] = name.label.removeprefix("flag: ")
    return table


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def emoji_drawings(modules: Path, prefixes: Iterable[str]) -> Iterator[Drawing]:
    """Every visible emoji of the sets, found in emojibase by code points or else by name."""
    names = emoji_names(modules)
    by_label = {_squash(name.label): name for name in names.values()}
    for prefix in prefixes:
        icon_set = load_set(modules, prefix)
        code_of = {name: _plain_code(code) for code, name in icon_set.get("chars", {}).items()}
        for name in visible_icons(icon_set):
            plain = re.sub(r"^flag-for-", "flag-", name)
            known = names.get(code_of.get(name, "")) or by_label.get(_squash(plain))
            if known is None:
                known = EmojiName(re.sub(r" \d+$", "", words(plain)), (), ())
            label = known.label.replace("flag: ", "flag of ").replace(":", ",")
            yield Drawing(
                key=f"{prefix}_{name}",
                captions=emoji_captions(label, known),
                label=label,
                kind="emoji",
                source=prefix,
                license=license_of(icon_set),
                svg=svg_of(icon_set, name),
                tags=known.tags,
            )


def emoji_captions(label: str, name: EmojiName) -> tuple[str, ...]:
    """The name alone, in a phrase, with keywords that it does not contain, and its nicknames."""
    if label.startswith("flag of "):  # keywords of flags are ISO codes
        return tidy([label, f"{label} emoji", f"{label.removeprefix('flag of ')} flag"])
    fresh = [tag for tag in name.tags if tag.lower() not in label.lower()]
    captions = [label, f"{label} emoji", f"emoji of {label}"]
    if fresh:
        captions += [
            f"{label}, {', '.join(fresh[:5])}",
            f"emoji of {label}, {', '.join(fresh[-3:])}",
        ]
    if len(fresh) > 3:
        captions.append(f"{', '.join(fresh[:4])} emoji")
    captions += [f"{nick} emoji" for nick in name.nicknames if len(_squash(nick)) > 2]
    return tidy(captions)


# Two letters that are a country's code and a language's. In Iconify's circle-flags these icons show
# the flag of the language: Arabic, Interlingue, Ido, Latin. (Others with such a pair, `de` or `fi`,
# have one picture for both, which is the country's.)
_LANGUAGE_FLAGS = {"circle-flags": ("ar", "ie", "io", "la")}


def flag_drawings(modules: Path, prefixes: Iterable[str]) -> Iterator[Drawing]:
    """Flags of countries; those of regions and organizations, which have no emoji, are left out."""
    country_of = countries(emoji_names(modules))
    for prefix in prefixes:
        icon_set = load_set(modules, prefix)
        for name in visible_icons(icon_set):
            country = country_of.get(re.sub(r"-(1x1|4x3)$", "", name))
            if country is None or name in _LANGUAGE_FLAGS.get(prefix, ()):
                continue
            phrases = ("flag of {}", "{} flag", "the national flag of {}")
            yield Drawing(
                key=f"{prefix}_{name}",
                captions=tidy(phrase.format(country) for phrase in phrases),
                label=country,
                kind="flag",
                source=prefix,
                license=license_of(icon_set),
                svg=svg_of(icon_set, name),
            )
