"""Text of any script on pictures: each character in the first font that has it.

The fonts are matplotlib's DejaVu Sans (Latin, Cyrillic, Greek, Arabic and others), Noto Sans CJK of
the PyPI package noto-cjk-sans-otc where it is installed, and the fonts of the system. A character
that none of them has is drawn as a box, and `missing_message` names it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageDraw, ImageFont

BOX = "□"
FONT_PACKAGE = "noto_cjk_sans_otc"
CHARACTERS_SHOWN = 12


def draw_text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, size: int, color: str
) -> None:
    """One line. xy: its upper left corner; size: in pixels"""
    x, y = xy
    baseline = y + round(0.93 * size)  # the ascent of DejaVu Sans; fonts of other heights sit on it
    for part, font in _runs(text, size):
        draw.text((x, baseline), part, fill=color, font=font, anchor="ls")
        x += font.getlength(part)


def text_width(text: str, size: int) -> float:
    """In pixels, of one line."""
    return sum(font.getlength(part) for part, font in _runs(text, size))


def wrap(text: str, size: int, width: float, max_lines: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces, and inside of words that are too long or
    have no spaces. What does not fit into `max_lines` is cut, with an ellipsis."""
    # A long text need not be measured: no letter is narrower than a pixel.
    words = " ".join(text.split())[: int(width) * max_lines].split(" ")
    lines: list[str] = []
    line = ""
    for word in words:
        joined = f"{line} {word}" if line else word
        if text_width(joined, size) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while text_width(line, size) > width and len(line) > 1:
            head = _fitting(line, size, width)
            lines.append(head)
            line = line[len(head) :]
    lines.append(line)
    if len(lines) > max_lines:
        last = _fitting(f"{lines[max_lines - 1]} {lines[max_lines]}", size, width, "…")
        lines = [*lines[: max_lines - 1], last.rstrip() + "…"]
    return lines


def missing_message(texts: Iterable[str]) -> str | None:
    """Names the characters that no font has, with the remedy; None if all can be drawn."""
    missing: dict[str, None] = {}
    for text in texts:
        for character in " ".join(text.split()):
            if not _is_mark(character) and _font_file(character) is None:
                missing[character] = None
    if not missing:
        return None
    codes = [f"U+{ord(character):04X}" for character in missing]
    shown = " ".join(codes[:CHARACTERS_SHOWN])
    if len(codes) > CHARACTERS_SHOWN:
        shown += " ..."
    return (
        f"no font has {shown}: drawn as {BOX}; for Chinese, Japanese and Korean pip install "
        "'clipx-train[cjk]', for other scripts install a font of the system"
    )


def _fitting(text: str, size: int, width: float, end: str = "") -> str:
    """The longest beginning, of at least one character, that fits together with `end`."""
    length = 1
    longest = len(text)
    while length < longest:
        middle = (length + longest + 1) // 2
        if text_width(text[:middle] + end, size) <= width:
            length = middle
        else:
            longest = middle - 1
    return text[:length]


def _runs(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """The parts of a line, each with its font."""
    parts: list[tuple[str, Path]] = []
    for character in " ".join(text.split()):
        if parts and (character == " " or _is_mark(character)):
            file = parts[-1][1]  # with the letter before it
            if ord(character) not in _characters(file):
                continue  # a mark on a box
        else:
            found = _font_file(character)
            character = BOX if found is None else character
            file = found or _shipped_fonts()[0]
        if parts and parts[-1][1] == file:
            parts[-1] = (parts[-1][0] + character, file)
        else:
            parts.append((character, file))
    return [(part, _font(file, size)) for part, file in parts]


def _is_mark(character: str) -> bool:
    """Whether it is drawn on another one, or not at all: accents, joiners, variation selectors."""
    return unicodedata.category(character) in ("Mn", "Me", "Mc", "Cf")


@cache
def _font_file(character: str) -> Path | None:
    """The first font that has a character."""
    for files in (_shipped_fonts, _system_fonts):
        for file in files():
            if ord(character) in _characters(file):
                return file
    return None


@cache
def _shipped_fonts() -> Sequence[Path]:
    import matplotlib

    files = [Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"]
    package = find_spec(FONT_PACKAGE)
    if package is not None:
        for folder in package.submodule_search_locations or ():
            files += sorted(Path(folder).glob("*.ttc"))
    return files


@cache
def _system_fonts() -> Sequence[Path]:
    """Upright fonts of normal weight first. Read only for characters that no shipped font has."""
    from matplotlib.font_manager import findSystemFonts

    files = sorted(map(Path, findSystemFonts()))
    styles = ("bold", "italic", "oblique", "light", "thin", "black", "mono")
    return sorted(files, key=lambda file: any(style in file.stem.lower() for style in styles))


@cache
def _characters(file: Path) -> frozenset[int]:
    """Empty for a font of bitmaps, which has no size of choice, and for a damaged one."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(file)).get_charmap())
    except (RuntimeError, OSError):
        return frozenset()


@cache
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)
