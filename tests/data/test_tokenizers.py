"""Tokens are open_clip's own, for any text."""

from __future__ import annotations

import itertools
import pickle
import random
import string
import time
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from ftfy import is_bad
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, basic_clean
from texts import PIECES, SENTENCES, fuzzed

from clipx.data import clip_bpe
from clipx.data.text_repair import _SUSPECT, repaired
from clipx.data.tokenizers import CachedTokenizer, ClipBPE, build_tokenizer, pad
from clipx.types import UserError

OURS, REFERENCE = ClipBPE(), SimpleTokenizer()
START, END = REFERENCE.sot_token_id, REFERENCE.eot_token_id
TEXTS = st.one_of(
    st.text(string.printable, max_size=60),
    st.text(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join),
    st.randoms(use_true_random=False).map(fuzzed),
)


def reference_row(text: str, context_length: int) -> list[int]:
    return REFERENCE(text, context_length)[0].tolist()


def row(text: str, context_length: int) -> list[int]:
    ids = OURS.encode(text, context_length)
    return pad([ids], OURS.pad_id, context_length)[0].tolist()


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, context_length=st.integers(1, 77))
def test_tokens_are_open_clips(text: str, context_length: int) -> None:
    assert row(text, context_length) == reference_row(text, context_length)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_every_token_of_fuzzed_texts_is_open_clips(clean: str) -> None:
    ours, reference, draw = ClipBPE(clean), SimpleTokenizer(clean=clean), random.Random(0)
    for text in [*SENTENCES, *(fuzzed(draw) for _ in range(2000))]:
        assert ours.encode(text, 10**6)[1:-1] == reference.encode(text), ascii(text)


@pytest.mark.parametrize("piece", PIECES)
def test_each_kind_of_text_has_open_clips_tokens(piece: str) -> None:
    for text in (piece, f"a{piece}b", f"{piece} {piece}", piece.upper()):
        assert row(text, 77) == reference_row(text, 77)


def test_every_character_that_is_ever_mended_is_mended_as_open_clip_does() -> None:
    """All below U+3100 and the forms at the end of the plane; the others are of one kind."""
    for code in (*range(0x3100), *range(0xF900, 0x10000)):
        text = f"x{chr(code)}y {chr(code)}1"
        assert repaired(text).split() == basic_clean(text).split(), hex(code)


def test_only_suspect_characters_or_pairs_are_mojibake() -> None:
    """One that is alone, whatever the ASCII around it, is not, so ftfy need not look."""
    ascii_around = ["", " ", "a", "A", "1", "?", "-", "'"]
    for code in (*range(0x80, 0x3100), *range(0xF800, 0x10000)):
        around = itertools.product(ascii_around, ascii_around)
        text = "a".join(f"{before}{chr(code)}{after}" for before, after in around)
        assert _SUSPECT.search(text) or not (is_bad(text) or is_bad(chr(code) + " ")), hex(code)


@pytest.mark.parametrize(
    "text", ["\u2019" * 1_000_000 + "e\u0301", "x" * 999_999 + "e\u0301", "y" * 1_000_001]
)
def test_text_beyond_the_length_that_is_mended_at_once_is_mended_alike(text: str) -> None:
    assert repaired(text) == basic_clean(text)


def test_lower_case_moves_no_space() -> None:
    """So captions may be split before or after."""
    for code in range(0x110000):
        space = chr(code).isspace()
        assert all(c.isspace() == space for c in chr(code).lower()), hex(code)


@pytest.mark.parametrize("text", ["word " * 100, "\xe9t\xe9 " * 100])
def test_a_long_caption_is_cut_and_keeps_its_end_token(text: str) -> None:
    ids = OURS.encode(text, 20)
    assert len(ids) == 20
    assert (ids[0], ids[-1]) == (START, END)
    assert ids[:-1] == OURS.encode(text, 77)[:19]


def test_what_is_remembered_stays_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ClipBPE()
    words = tokenizer._ids
    monkeypatch.setattr(type(words), "max_words", 50)
    for text in [*(f"w{i} x-{i}y{i} \u732b{i}" for i in range(100)), "z" * 1000, "a cat"]:
        assert tokenizer.encode(text, 10**6)[1:-1] == REFERENCE.encode(text)
        assert len(words) <= 50
        assert max(map(len, words)) <= words.max_characters


def test_a_tokenizer_travels_to_a_worker_process() -> None:
    tokenizer = ClipBPE()
    before = tokenizer.encode("a cat", 77)
    arrived = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - our own bytes
    assert arrived.encode("a cat", 77) == before


def test_pad_fills_to_the_longest_or_to_a_length() -> None:
    assert torch.equal(pad([[1, 2], [3, 4, 5]], 0), torch.tensor([[1, 2, 0], [3, 4, 5]]))
    assert torch.equal(pad([[1, 2]], 9, 4), torch.tensor([[1, 2, 9, 9]]))
    assert torch.equal(pad([[], [1]], 7), torch.tensor([[7], [1]]))


@pytest.mark.parametrize(
    ("longest", "multiple", "context_length", "tokens"),
    [(5, 1, None, 5), (5, 8, None, 8), (8, 8, None, 8), (9, 8, 77, 16), (73, 8, 77, 77)],
)
def test_pad_rounds_the_longest_up_to_a_multiple_within_the_context(
    longest: int, multiple: int, context_length: int | None, tokens: int
) -> None:
    captions = [list(range(1, longest + 1)), [1]]
    padded = pad(captions, 0, multiple=multiple, context_length=context_length)
    assert padded.dtype == torch.int64
    expected = np.zeros((2, tokens), np.int64)
    expected[0, :longest], expected[1, 0] = captions[0], 1
    assert padded.tolist() == expected.tolist()
    assert pad(captions, 0, 99, multiple=multiple).shape == (2, 99)


NAMES = [
    name
    for name in open_clip.list_models()
    if not open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name")
]


def test_every_model_of_open_clip_with_clips_vocabulary_gets_it() -> None:
    assert len(NAMES) > 80
    for name in NAMES:
        assert isinstance(build_tokenizer(open_clip.get_model_config(name)["text_cfg"]), ClipBPE)


def test_the_setting_clean_is_followed() -> None:
    text = "A_cat's \u201cHAT\u201d, <start_of_text>"
    for clean in ("lower", "whitespace", "canonicalize"):
        tokenizer = build_tokenizer({"tokenizer_kwargs": {"clean": clean, "reduction_mask": ""}})
        assert tokenizer.encode(text, 77)[1:-1] == SimpleTokenizer(clean=clean).encode(text)


@pytest.mark.parametrize(
    ("text_cfg", "complaint"),
    [
        ({"tokenizer_kwargs": {"reduction_mask": "syntax"}}, "reduction_mask 'syntax' is not supp"),
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, "strip_sep_token True is not supported"),
        ({"tokenizer_kwargs": {"clean": "loud"}}, "clean 'loud' is none of lower, whitespace, can"),
        ({"tokenizer_mode": "clips"}, "tokenizer_mode 'clips' is not supported for CLIP's own"),
        ({"vocab_size": 32000}, "ids up to 49407, and text_cfg.vocab_size is 32000.* to 49408"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    text_cfg: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        build_tokenizer(text_cfg)


# --- long words ---

LETTERS = {
    "cjk": "\u4e00\u4eba\u5927\u65e5\u672c\u8a9e\u6f22\u5b57",
    "latin": "abcehilnorst",
    "a": "a",
}


@pytest.mark.parametrize("letters", LETTERS)
def test_long_tokens_are_merged_as_short_ones(letters: str) -> None:
    joined, byte_ids = OURS._ids._joined, OURS._ids._byte_ids
    draw = random.Random(0)
    for length in (2, 3, 10, 200, 1000):
        for _ in range(20):
            word = "".join(draw.choices(LETTERS[letters], k=length))
            ids = [byte_ids[byte] for byte in word.encode()]
            assert clip_bpe._merge_long(ids.copy(), joined) == clip_bpe._merge_short(ids, joined)


@pytest.mark.parametrize("letters", LETTERS)
def test_a_caption_of_one_long_word_costs_no_minutes(letters: str) -> None:
    """40,000 characters took 111 s when the work grew with their square."""
    word = "".join(random.Random(0).choices(LETTERS[letters], k=500_000))
    began = time.monotonic()
    ids = OURS.encode(word, 77)
    assert time.monotonic() - began < 10
    assert ids == [*OURS.encode(word[:3000], 77)[:-1], OURS.end]
    assert len(ids) == 77


def test_a_cached_tokenizer_gives_the_same_ids_and_encodes_a_text_once() -> None:
    class Counting:
        pad_id = 7
        state = "letters"
        num_calls = 0

        def encode(self, text: str, context_length: int) -> list[int]:
            self.num_calls += 1
            return [ord(letter) for letter in text][:context_length]

    counting = Counting()
    cached = CachedTokenizer(counting, max_texts=2)
    for text, length in (("cat", 3), ("cat", 3), ("cat", 2), ("dog", 3), ("dog", 3), ("cat", 2)):
        assert cached.encode(text, length) == [ord(letter) for letter in text][:length]
    assert counting.num_calls == 4, "the third text finds no room"
    assert (cached.pad_id, cached.state) == (7, "letters")
