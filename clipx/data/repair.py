"""open_clip's repair of captions, at a small part of its cost where there is little to mend.

open_clip mends every caption by ftfy (mojibake, curly quotes, full-width letters, control
characters) and then decodes HTML entities twice. Most of the time goes into finding out that
nothing is wrong.
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable
from functools import cache, partial
from unicodedata import normalize

# In ASCII, ftfy changes nothing but these (among them the beginning of terminal colors).
_CONTROL = re.compile(r"[\x00-\x08\x0b\r\x0e-\x1f\x7f]")
# What it does not treat one character at a time: line breaks (it mends each line on its own),
# terminal colors, surrogates.
_BEYOND_CHARACTERS = re.compile("[\n\r\x1b\u2028\u2029\ud800-\udfff]")
# Mojibake has two characters side by side that are not ASCII, or else one of these.
_SUSPECT = re.compile("[^\x00-\x7f]{2}|[\x80-\x9f\xc2\xc3\u0152\u0153]")
_MOST_CHARACTERS = 1_000_000  # it cuts longer text, and mends each part on its own


def repaired(text: str) -> str:
    """What open_clip's `basic_clean` returns, but for whitespace at the ends."""
    if not text.isascii() or "&" in text or not text.isprintable():
        text = _mended(text)
        if "&" in text:
            text = html.unescape(html.unescape(text))
    return text


def _mended(text: str) -> str:
    """`ftfy.fix_text(text)`: its loop in short, or itself where the text is broken."""
    from ftfy import fix_text, is_bad

    mended = text
    while not ("&" in mended and ";" in mended):  # ftfy decodes entities that end in ";"
        if mended.isascii() and not _CONTROL.search(mended):
            return mended
        if _BEYOND_CHARACTERS.search(mended) or len(mended) > _MOST_CHARACTERS:
            break
        if _SUSPECT.search(mended) and is_bad(mended):
            break
        before, mended = mended, normalize("NFC", _replace()(mended))
        if mended == before:
            return mended
    return fix_text(text)


@cache
def _replace() -> Callable[[str], str]:
    """What ftfy does to single characters: full-width letters, ligatures, curly quotes, control
    characters."""
    from ftfy import fixes

    now = {}
    for was in map(chr, range(0x10000)):  # above these it changes nothing
        text = fixes.fix_character_width(fixes.fix_latin_ligatures(was))
        text = fixes.remove_control_chars(fixes.uncurl_quotes(text))
        if text != was:
            now[was] = text
    # Few characters are met: a search is faster than str.translate, which looks each one up.
    changed = re.compile(f"[{re.escape(''.join(now))}]")
    return partial(changed.sub, lambda found: now[found[0]])


_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
# What a repaired caption is turned into before it is split, by open_clip's setting `clean`; runs of
# whitespace become one space besides.
CLEAN: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "whitespace": str,
    "canonicalize": lambda text: text.translate(_NO_PUNCTUATION).lower(),
}
