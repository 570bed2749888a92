"""Texts that meet every branch of the tokenizers, drawn from a seed. benchmarks/tokenizer.py uses
them too."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from html.entities import html5

# Plain words, contractions, specials, entities, repair, control characters, scripts.
PIECES = [
    *["a photo of a cat", "DON'T", "I'll've", "it's", "'s", "''", "rock'n'roll", "x'd", "12 345"],
    *["<start_of_text>", "<end_of_text>", "<END_OF_TEXT>", "<|endoftext|>", "http://a.b/c?d=e#f"],
    *["&amp;", "&amp;amp;", "&lt;b&gt;", "&", "AT&T", "&#39;s", "&nbsp;", "3.14", "!?..."],
    *["&copy 2", "&notit;", "&#x2019;", "&#128512;", "&EACUTE;", "&AMP", "a & b", "&;", "&#xD800;"],
    *["caf\xe9", "na\xefve", "\u732b", "\U0001f600", "\xbd", "\u0663", "\ufb01sh", "sch\xc3\xb6n"],
    *["\u2019s", "\u201cquoted\u201d", "\u0130", "\u200b", "\xa0", "\u3000", "\u02bc", "\u2026"],
    *["\t", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x00", "\x1b[31m", "\x7f", "  ", "_a_", ""],
    *["\\", "~`^", "#$%", "\x85", "\u2028", "\ufeff", "\xad", "\ufffd", "\ufffc", "\u206a"],
    *["e\u0301", "n\u0303o", "\u1e9e\xdf", "\u03a3\u0391\u03a3", "\u017f", "\u212a", "\u01c5"],
    *["\uff21\uff22\uff06\uff1b", "\uff8a\uff9f", "\uffe6", "\ufb2a", "\u0958", "\uac00\u11a8"],
    *["\ud83d", "\udca9", "\ud83d\udca9", "\U0001f468\u200d\U0001f469\u200d\U0001f467"],
    *["\u2764\ufe0f", "\U0001f1eb\U0001f1f7", "\U0001f44d\U0001f3fd", "\u0645\u0631\u062d\u0628"],
    *["\u0e44\u0e17\u0e22", "\xc3 la carte", "\xc2 ", "\u0153 ", "\xe0\xb2", "\xc3\xa9t\xc3\xa9"],
    *["\xe2\x80\x99", "\u0432\u0402\u2122", "1\n\xc3 la carte"],
]  # fmt: skip
WORDS = "a photo of the red cat on Black & white roof, by night: 50% off! T-shirt (2019) | John's"
SENTENCES = [
    "un \xe9t\xe9 \xe0 la plage, d\xe9j\xe0 vu \u2013 l\u2019\u0153uvre d\u2019art",
    "Gr\xfc\xdfe aus M\xfcnchen \u201eStra\xdfe\u201c",
    "\u0424\u043e\u0442\u043e \u0441\u0435\u0440\u043e\u0433\u043e \u043a\u043e\u0442\u0430",
    "\u03a6\u03c9\u03c4\u03bf\u03b3\u03c1\u03b1\u03c6\u03af\u03b1 \u03b3\u03ac\u03c4\u03b1\u03c2",
    "\u5c4b\u9876\u4e0a\u7684\u732b\uff0c\u665a\u4e0a\u3002",
    "\u732b\u306e\u5199\u771f\u3000\u30cd\u30b3",
    "za\u017c\xf3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144",
    "\u0130stanbul'da \u0131\u015f\u0131k",
    "\u201cmad\u201d \u2014 it\u2019s \u00a320 \u2026 \u2122 \xae 5\xb0C \xbd",
]
CODEPAGES = ["latin-1", "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp437", "mac_roman"]
BLOCKS = [
    *[(0x20, 0x7F), (0x00, 0x20), (0x80, 0x100), (0x100, 0x250), (0x250, 0x300), (0x300, 0x370)],
    *[(0x370, 0x400), (0x400, 0x530), (0x590, 0x700), (0x900, 0x980), (0xE00, 0xE80)],
    *[(0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2070), (0x2070, 0x2200), (0x2200, 0x2600)],
    *[(0x2600, 0x27C0), (0x3000, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAE00), (0xD800, 0xE000)],
    *[(0xE000, 0xE010), (0xFB00, 0xFB50), (0xFE00, 0xFE10), (0xFF00, 0x10000)],
    *[(0x1D400, 0x1D500), (0x1F300, 0x1F700), (0x10000, 0x110000)],
]


def fuzzed(draw: random.Random) -> str:
    """One text; about a third are ASCII."""
    kinds: list[Callable[[random.Random], str]]
    kinds = [_printable, _sentence, _pieces, _characters, _garbled, _entities, _long_word]
    return draw.choices(kinds, weights=[4, 4, 4, 4, 2, 2, 0.1])[0](draw)


def _printable(draw: random.Random) -> str:
    return "".join(draw.choices(string.printable, k=draw.randrange(60)))


def _sentence(draw: random.Random) -> str:
    """A caption with a few pieces in it, in the case of words, titles or headlines."""
    words = draw.choices(WORDS.split(), k=draw.randrange(20))
    for _ in range(draw.randrange(3)):
        words.insert(draw.randint(0, len(words)), draw.choice(PIECES))
    text = draw.choice([" ", " ", "  ", "_", ""]).join(words)
    return draw.choice([str, str.upper, str.title, str.lower])(text)


def _pieces(draw: random.Random) -> str:
    return draw.choice(["", " "]).join(draw.choices([*PIECES, *SENTENCES], k=draw.randrange(9)))


def _characters(draw: random.Random) -> str:
    """Of two or three parts of Unicode."""
    blocks = draw.choices(BLOCKS, k=draw.randint(1, 3))
    text = [chr(draw.randrange(*draw.choice(blocks))) for _ in range(draw.randrange(24))]
    return draw.choice(["", "", " ", "a"]).join(text)


def _garbled(draw: random.Random) -> str:
    """A text in UTF-8 that somebody has read as another encoding, once or twice."""
    text = draw.choice([*SENTENCES, _pieces(draw)])
    for _ in range(draw.randint(1, 2)):
        raw = text.encode("utf-8", "replace")
        text = raw.decode(draw.choice(CODEPAGES), draw.choice(["replace", "ignore"]))
    return text if draw.random() < 0.5 else f"{draw.choice(SENTENCES)} {text}"


def _entities(draw: random.Random) -> str:
    def entity() -> str:
        name = draw.choice(names)
        number = draw.choice([draw.randrange(0x300), draw.randrange(0x120000)])
        text = draw.choice([f"&{name}", f"&{name};", f"&#{number};", f"&#x{number:x}", "&", "&#"])
        return draw.choice([text, text, text.upper(), text.replace("&", "&amp;")])

    names = sorted(html5)
    parts = [draw.choice([entity(), draw.choice(PIECES), " ", "<", "a"]) for _ in range(8)]
    return draw.choice(["", " "]).join(parts[: draw.randint(1, 8)])


def _long_word(draw: random.Random) -> str:
    alphabet = draw.choice(["ab", "aA1-", string.ascii_letters, "\xe9\u732b", "\u0430\u0431"])
    return "".join(draw.choices(alphabet, k=draw.randint(60, 600)))
