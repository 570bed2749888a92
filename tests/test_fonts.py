"""Text of any script: which font draws it, where it is broken, and what no font has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from clipx import fonts
from clipx.fonts import BOX, draw_text, missing_message, text_width, wrap

CHINESE = "红色的汽车"


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only DejaVu Sans, on each machine."""
    forget()
    monkeypatch.setattr(fonts, "find_spec", lambda name: None)
    monkeypatch.setattr(fonts, "_system_fonts", tuple)
    yield
    forget()


def forget() -> None:
    fonts._font_file.cache_clear()
    fonts._shipped_fonts.cache_clear()


def pixels(text: str, size: int = 20) -> np.ndarray:
    image = Image.new("L", (400, 40), "white")
    draw_text(ImageDraw.Draw(image), (5, 5), text, size, "black")
    return np.asarray(image)


def font_with(path: Path, characters: str) -> Path:
    """A font in which each of the characters is a black square."""
    pen = TTGlyphPen(None)
    for n, point in enumerate([(0, 0), (0, 800), (800, 800), (800, 0)]):
        (pen.lineTo if n else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{ord(c):04X}" for c in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):04X}" for c in characters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.mark.parametrize(
    "text", ["Straße", "красная машина", "δοκιμή", "e\u0301", "✓ ✗ …", "سيارة"]
)
def test_latin_cyrillic_greek_and_arabic_are_drawn_without_any_package(text: str) -> None:
    assert missing_message([text]) is None
    assert not np.array_equal(pixels(text), pixels(BOX * len(text)))
    assert (pixels(text) < 128).any()


def test_characters_of_no_font_are_boxes_and_named_with_the_remedy() -> None:
    assert np.array_equal(pixels(CHINESE[:2]), pixels(BOX * 2))
    message = missing_message(["a", CHINESE, CHINESE[::-1]])
    assert message is not None
    assert message.startswith("no font has U+7EA2 U+8272 U+7684 U+6C7D U+8F66: drawn as □; ")
    assert "pip install 'clipx-train[cjk]'" in message
    many = missing_message([chr(0x4E00 + n) for n in range(50)])
    assert many is not None
    assert many.count("U+") == fonts.CHARACTERS_SHOWN


@pytest.mark.parametrize("text", ["\udcff", "\x07\x1b", "🚗", "\u0e23\u0e38"])
def test_any_text_can_be_drawn(text: str) -> None:
    """Names of files have lone surrogates and control characters."""
    assert (pixels(f"a{text}b") < 128).any()
    assert wrap(text, 12, 100, 2)


def test_each_character_is_drawn_by_the_first_font_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = (font_with(tmp_path / "a.ttf", "红a"), font_with(tmp_path / "b.ttf", "红色"))
    monkeypatch.setattr(fonts, "_system_fonts", lambda: system)
    runs = fonts._runs("a红色b", 20)
    files = [Path(str(font.path)).name for _, font in runs]
    assert [text for text, _ in runs] == ["a", "红", "色", "b"]
    assert files == ["DejaVuSans.ttf", "a.ttf", "b.ttf", "DejaVuSans.ttf"]
    assert missing_message(["红色"]) is None
    assert text_width("红色", 20) == pytest.approx(40, abs=1)


def test_the_package_of_chinese_is_used_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    font_with(tmp_path / "NotoSansCJK.ttc", CHINESE)

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(fonts, "find_spec", lambda name: Spec)
    assert missing_message([CHINESE]) is None
    assert text_width(CHINESE, 20) == pytest.approx(100, abs=1)


def test_a_damaged_font_of_the_system_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    system = (damaged, font_with(tmp_path / "b.ttf", "色"))
    monkeypatch.setattr(fonts, "_system_fonts", lambda: system)
    assert missing_message(["色"]) is None


@pytest.mark.parametrize(
    "text",
    ["a long class name with many words", "W" * 100, "il" * 300, CHINESE * 20, "Страна " * 20, ""],
)
@pytest.mark.parametrize("max_lines", [1, 3])
def test_lines_fit_and_nothing_is_lost_silently(text: str, max_lines: int) -> None:
    lines = wrap(text, 13, 90, max_lines)
    assert 1 <= len(lines) <= max_lines
    assert all(text_width(line, 13) <= 90 for line in lines)
    joined = "".join(lines).replace(" ", "")
    whole = text.replace(" ", "")
    assert joined == whole or (joined.endswith("…") and whole.startswith(joined[:-1]))


def test_lines_break_at_spaces() -> None:
    assert wrap("one two\n three", 13, text_width("one two", 13), 3) == ["one two", "three"]
    narrow = wrap("one twothreefour", 13, text_width("twothree", 13), 3)
    assert narrow == ["one", "twothree", "four"]
