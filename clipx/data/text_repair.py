"""open_clip's repair of captions, faster for captions that need little.

open_clip repairs captions by ftfy (mojibake, curly quotes, full-width letters, control characters)
and then decodes HTML entities twice. Most of that time goes into captions that need no repair.
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable
from functools import cache
from unicodedata import normalize

# The only ASCII characters that ftfy changes, ESC among them, which begins terminal colors
_CONTROL = re.compile(r"[\x00-\x08\x0b\r\x0e-\x1f\x7f]")
# Not changed one by one: line breaks (ftfy repairs each line), terminal colors, surrogates
_BEYOND_CHARACTERS = re.compile("[\n\r\x1b\u2028\u2029\ud800-\udfff]")
# Mojibake has two adjacent characters outside ASCII, or one of these
_SUSPECT = re.compile("[^\x00-\x7f]{2}|[\x80-\x9f\xc2\xc3\u0152\u0153]")
_MAX_CHARACTERS = 1_000_000  # ftfy cuts longer text and repairs the parts


def repaired(text: str) -> str:
    """open_clip's `basic_clean`, except for whitespace at the ends."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    text = _fix_text(text)
    if "&" in text:
        text = html.unescape(html.unescape(text))
    return text


def _fix_text(text: str) -> str:
    """`ftfy.fix_text(text)`: the steps of its loop that matter, or ftfy itself for bad text."""
    from ftfy import fix_text, is_bad

    fixed = text
    while not ("&" in fixed and ";" in fixed):  # ftfy decodes entities that end in ";"
        if fixed.isascii() and not _CONTROL.search(fixed):
            return fixed
        if _BEYOND_CHARACTERS.search(fixed) or len(fixed) > _MAX_CHARACTERS:
            break
        if _SUSPECT.search(fixed) and is_bad(fixed):
            break
        before = fixed
        fixed = normalize("NFC", _fix_characters(fixed))
        if fixed == before:
            return fixed
    return fix_text(text)


def _fix_characters(text: str) -> str:
    pattern, replacements = _character_fixes()
    return pattern.sub(lambda match: replacements[match[0]], text)


@cache
def _character_fixes() -> tuple[re.Pattern[str], dict[str, str]]:
    """ftfy's changes of single characters: full-width letters, ligatures, curly quotes, control
    characters. A search for the few that change is faster than str.translate, which looks up each
    character of the text."""
    from ftfy import fixes

    replacements = {}
    for code in range(0x10000):  # it changes none above
        character = chr(code)
        fixed = fixes.fix_character_width(fixes.fix_latin_ligatures(character))
        fixed = fixes.remove_control_chars(fixes.uncurl_quotes(fixed))
        if fixed != character:
            replacements[character] = fixed
    return re.compile(f"[{re.escape(''.join(replacements))}]"), replacements


_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
CLEAN: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "whitespace": str,
    "canonicalize": lambda text: text.translate(_NO_PUNCTUATION).lower(),
}
"""open_clip's setting `clean`: changes of a repaired caption before it is split at whitespace."""
