"""Emoji and flags of Iconify with the names and keywords of emojibase.

No text is invented: captions are the names, keywords, styles and categories of the packages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.demo.drawings import Drawing, icon_drawing, load_set, visible_icons, words
from clipx.demo.packages import EMOJIBASE
from clipx.types import UserError


@dataclass(frozen=True)
class EmojiName:
    """The names of one emoji in emojibase. nicknames: shortcodes of chat programs as words, which
    variants of skin tone lack"""

    label: str
    tags: tuple[str, ...] = ()
    nicknames: tuple[str, ...] = ()


def emoji_names(modules: Path) -> dict[str, EmojiName]:
    """Names by code points in lower-case hex without variation selectors, skin tones included."""
    shortcodes = _read_emojibase(modules, "shortcodes/emojibase.json")
    names = {}
    for record in _read_emojibase(modules, "data.json"):
        tags = tuple(record.get("tags", ()))
        codes = shortcodes.get(record["hexcode"], [])
        if isinstance(codes, str):  # the package writes one code without a list
            codes = [codes]
        nicknames = tuple(words(code) for code in codes)
        names[_plain_code(record["hexcode"])] = EmojiName(record["label"], tags, nicknames)
        for variant in record.get("skins", []):
            names[_plain_code(variant["hexcode"])] = EmojiName(variant["label"], tags)
    return names


def _read_emojibase(modules: Path, name: str) -> Any:
    path = modules / EMOJIBASE / "en" / name
    if not path.is_file():
        raise UserError(f"emoji names are missing: no {path}; delete {modules} and run again")
    return json.loads(path.read_text("utf-8"))


def _plain_code(hexcode: str) -> str:
    return hexcode.lower().replace("-fe0f", "")


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def emoji_drawings(modules: Path, prefixes: Iterable[str]) -> Iterator[Drawing]:
    """All visible emoji of the sets, named by their code points or else by the icon's name."""
    names = emoji_names(modules)
    by_label = {_squash(name.label): name for name in names.values()}
    for prefix in prefixes:
        icon_set = load_set(modules, prefix)
        name_of_icon = {}  # where the set has code points
        for code, icon in icon_set.get("chars", {}).items():
            name_of_icon[icon] = names.get(_plain_code(code))
        for icon in visible_icons(icon_set):
            plain = re.sub(r"^flag-for-", "flag-", icon)  # as some sets call `flag: France`
            name = name_of_icon.get(icon)
            if name is None:
                name = by_label.get(_squash(plain))
            if name is None:  # an emoji that is newer than the names
                name = EmojiName(re.sub(r" \d+$", "", words(plain)))
            label = name.label.replace("flag: ", "flag of ").replace(":", ",")
            captions = _emoji_captions(label, name)
            yield icon_drawing(
                icon_set, icon, kind="emoji", label=label, captions=captions, tags=name.tags
            )


def _emoji_captions(label: str, name: EmojiName) -> list[str]:
    """The name alone, in a phrase, with keywords that it does not contain, and its nicknames."""
    if label.startswith("flag of "):  # whose keywords are ISO codes
        return [label, f"{label} emoji", f"{label.removeprefix('flag of ')} flag"]
    captions = [label, f"{label} emoji", f"emoji of {label}"]
    tags = [tag for tag in name.tags if tag.lower() not in label.lower()]
    if tags:
        captions.append(f"{label}, {', '.join(tags[:5])}")
        captions.append(f"emoji of {label}, {', '.join(tags[-3:])}")
    if len(tags) > 3:
        captions.append(f"{', '.join(tags[:4])} emoji")
    for nickname in name.nicknames:
        if len(_squash(nickname)) > 2:
            captions.append(f"{nickname} emoji")
    return captions


# Codes of both a country and a language. In circle-flags these icons show the language's flag:
# Arabic, Interlingue, Ido, Latin. (Other such codes, `de` or `fi`, have that of the country.)
_LANGUAGE_FLAGS = {"circle-flags": ("ar", "ie", "io", "la")}


def flag_drawings(modules: Path, prefixes: Iterable[str]) -> Iterator[Drawing]:
    """Flags of countries, without those of regions and organizations, which have no emoji."""
    countries = {}  # by ISO code in lower case
    for code, name in emoji_names(modules).items():
        # The emoji of a country is two regional indicators, one for each letter of its code.
        letters = [int(point, 16) - 0x1F1E6 for point in code.split("-")]
        if len(letters) == 2 and min(letters) >= 0 and max(letters) < 26:
            iso = chr(ord("a") + letters[0]) + chr(ord("a") + letters[1])
            countries[iso] = name.label.removeprefix("flag: ")
    for prefix in prefixes:
        icon_set = load_set(modules, prefix)
        for icon in visible_icons(icon_set):
            country = countries.get(re.sub(r"-(1x1|4x3)$", "", icon))  # in both proportions
            if country is None or icon in _LANGUAGE_FLAGS.get(prefix, ()):
                continue
            captions = [f"flag of {country}", f"{country} flag", f"the national flag of {country}"]
            yield icon_drawing(icon_set, icon, kind="flag", label=country, captions=captions)
